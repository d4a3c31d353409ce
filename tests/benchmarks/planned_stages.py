"""What critiques and refinements add to an iteration of plain GRPO at the paper's shapes, by a plan: no TPU is needed.

    python -m cgrpo_jax.plan --config=configs/qwen3_8b.py --topology=v6e:4x4 --json=plan.json
    python tests/benchmarks/planned_stages.py --plan=plan.json [--config=FILE] [--failed=0.1,0.2,0.3] [--json=FILE]

A plan has the least seconds of every program at full lengths, of an iteration in which every question is refined. Here
a share of the questions is; decoding and the prompts of critiques and refinements take that share of their time, and
the update takes time by its rows. Slots are full throughout: what a pipeline of the stages comes to, but for its end.
The other side is GRPO with as many rows a question as the group of Critique-GRPO has at most, n + k, as in the paper,
which reports 1.02 (7B) and 1.065 (8B) times its time.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping

from cgrpo_jax.runs import config as config_lib

COUNTED = ("prefill", "critique_prefill", "refine_prefill", "decode", "update")


def iteration(seconds: Mapping[str, float], config, *, rows: int, failed: float) -> float:
    """Returns the least seconds of an iteration.

    Args:
      seconds: of each program of a plan in its iteration, which refines all questions.
      config: what was planned.
      rows: responses to a question.
      failed: share of the questions that are refined.
    """
    n, k = config.num_responses, config.refine.num_kept
    after = config.critic.max_length + config.max_response_length  # a critique and a refinement
    written = rows * config.max_response_length + failed * rows * after
    decode = seconds["decode"] * written / (n * (config.max_response_length + after))
    prompts = seconds["prefill"] + failed * (rows / n) * (seconds["critique_prefill"] + seconds["refine_prefill"])
    update = seconds["update"] * (rows + failed * k) / (n + k)
    return prompts + decode + update + seconds.get("reshard", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=pathlib.Path, required=True)
    parser.add_argument("--config", default="configs/qwen3_8b.py")
    parser.add_argument("--failed", default="0.1,0.2,0.3")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    config = config_lib.load(given.config)
    plan = json.loads(given.plan.read_text(encoding="utf-8"))
    if isinstance(plan, list):
        sys.exit(f"{given.plan} is of {len(plan)} topologies; plan one.")
    seconds = {one["name"]: one["seconds_bound"] * one["runs"] for one in plan["programs"] if one["seconds_bound"]}
    if missing := [name for name in COUNTED if name not in seconds]:
        sys.exit(
            f"{given.plan} has no costs of {', '.join(missing)}; plan critique=cot by the policy, without --nocosts."
        )
    if others := [name for name in seconds if name not in COUNTED and name != "reshard"]:
        sys.exit(f"{given.plan} has {', '.join(others)}, which is not counted here; plan without.")
    if config.critique.num_per_response != 1 or config.refine.per_critique != 1:
        sys.exit("more than one critique a response, or refinement a critique, is not counted here; plan one of each.")
    n, k = config.num_responses, config.refine.num_kept
    grpo, found = iteration(seconds, config, rows=n + k, failed=0.0), []
    for failed in map(float, given.failed.split(",")):
        ours = iteration(seconds, config, rows=n, failed=failed)
        workload = f"{given.config}, {plan['topology']}, {failed:.0%} of questions refined; GRPO has {n + k} rows"
        name = f"planned_stages_over_grpo/{failed:g}"
        found.append({"name": name, "value": ours / grpo, "target": None, "met": None, "workload": workload})
        print(f"{name:<34}{ours / grpo:>8.3f}  {ours:.0f} s / {grpo:.0f} s  {workload}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
