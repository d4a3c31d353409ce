"""Evaluates a checkpoint: greedy pass@1 and unbiased pass@k on the held-out problems of a configuration.

python -m cgrpo_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
"""

import contextlib
import datetime
import functools
import json
import pathlib
import sys

from cgrpo_jax import assemble, checks, cli, generation, journal, runtime
from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import evaluate
from cgrpo_jax.pipeline import Pipeline
from cgrpo_jax.problems import load_problems
from cgrpo_jax.rundir import RunDir, write_atomically


def main(config, workdir: str, distributed: bool = False) -> None:
    """Writes `WORKDIR/evaluation/summary.json` and `samples.jsonl`, and prints the numbers.

    The weights are the newest checkpoint of `WORKDIR`; where it has none, those that the configuration starts from.
    """
    runtime.start(distributed=distributed)
    started = runtime.decide(lambda: RunDir(workdir).started().isoformat(), f"reading {workdir}")
    with runtime.agree("loading model and data"):
        checks.check(config)
        model = assemble.load_model(config, assemble.make_mesh(config), now=datetime.datetime.fromisoformat(started))
        _, problems, skipped = load_problems(config, model.prompts)
        if not problems:
            raise UserError("nothing to evaluate on: the configuration has no held-out problems; set data.eval.")
    params, source = assemble.trained_params(config, model, workdir)
    with contextlib.ExitStack() as held, journal.evaluating() as bar:
        result, groups = evaluate(
            model,
            params,
            problems,
            pipeline=Pipeline(generation.open_grader(config, held)),
            num_samples=config.eval.num_samples,
            ks=tuple(config.eval.k),
            temperature=config.eval.temperature,
            top_p=config.eval.top_p,
            max_length=config.max_response_length,
            pass_threshold=config.pass_threshold,
            seed=config.seed,
            on_tick=functools.partial(journal.show, bar),
        )
    if not runtime.is_first():
        return
    lines = [
        {
            "problem": problem.index,
            "question": problem.question,
            "answer": problem.answer,
            "greedy": greedy.text,
            "greedy_reward": greedy.reward,
            "samples": [row.text for row in sampled],
            "rewards": [row.reward for row in sampled],
        }
        for problem, (greedy, *sampled) in zip(problems, groups, strict=True)
    ]
    out = pathlib.Path(workdir) / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(out / "summary.json", json.dumps(result | {"questions": len(problems)}, indent=2) + "\n")
    left_out = f" ({skipped['held-out']} were too long and left out)" if skipped["held-out"] else ""
    sys.stdout.write(f"{len(problems)} questions{left_out}, weights from {source}\n")
    sys.stdout.write("".join(f"{name:<12}{value:>8.3f}\n" for name, value in result.items()))


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags={"distributed": cli.DISTRIBUTED})
