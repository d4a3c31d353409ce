"""Diagnoses a checkpoint on its training questions: which it never solves, and which critiques help it there.

    python -m cgrpo_jax.diagnose --config=configs/quickstart.py --workdir=runs/quickstart

The numbers of the paper's Tables 1 and 12. It also writes `pass_rates.jsonl`, by which `data.pass_rates` drops
questions that are too easy or too hard. The same command again goes on with a diagnosis that was killed; with further
`diagnosis.kinds` it adds these.
"""

import contextlib
import json
import pathlib
import sys

from cgrpo_jax.datasets.problems import check_told
from cgrpo_jax.evaluation import benchmark, diagnosis, session
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.records import Problem
from cgrpo_jax.runs import build_inference, cli, resume_policy
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import console, processes, signals

FLAGS = {"distributed": cli.DISTRIBUTED, "out": cli.Flag("folder of the results; by default WORKDIR/diagnosis")}


def main(config, workdir: str, distributed: bool = False, out: str | None = None) -> None:
    """Writes every text, the numbers (`summary.json`) and `pass_rates.jsonl`, and prints the numbers as a table.

    The weights are the newest checkpoint of `WORKDIR`; where it has none, those that the configuration starts from.
    Stopped by SIGTERM or Ctrl-C, it says what it keeps, and exits as training does.
    """
    processes.start(distributed=distributed)
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    results = Results(out or pathlib.Path(workdir) / "diagnosis", may_change=resume_policy.DIAGNOSIS)
    with contextlib.ExitStack() as held:
        of = session.begin(config, workdir, results, held, kind="training", choose=_first, prepare=_with_room)
        sampling = build_inference.sampling(config)
        policy = benchmark.make_generator(of.model, of.params, sampling, seed=config.seed, stream=diagnosis.STREAM)
        judge = session.critic(of, sampling, stream=diagnosis.STREAM) or policy
        with session.stoppable(results, stopped_status) as tick:
            how = {"results": results, "protocol": _protocol(config), "orchestrator": of.orchestrator, "on_tick": tick}
            diagnosis.respond_on_disk(policy, of.problems, **how)
            for kind in config.diagnosis.kinds:
                critic = build_inference.make_critic(config, judge if kind == "cot" else None, kind=kind)
                encode = of.model.tokenizer.encode
                diagnosis.critique_on_disk(kind, policy, critic, of.problems, encode=encode, **how)
        if processes.is_first():
            console.say(f"weights from {of.source}", sys.stdout)
            _report(config, of)


def _first(config, problems: list[Problem]) -> list[Problem]:
    """Returns the questions to diagnose; all kinds of critiques must be possible of them."""
    problems = problems[: config.diagnosis.num_questions or None]
    if "indicative_gt" in config.diagnosis.kinds:
        check_told(config, problems)
    return problems


def _with_room(config):
    """Returns the configuration whose engine has room for all that a diagnosis writes."""
    writes = "cot" in config.diagnosis.kinds
    kind = "cot" if writes else config.diagnosis.kinds[0]
    changes = {"refine": "policy", "critique": kind, "critique_schedule": ()}
    if not writes:  # nobody is asked
        changes |= {"critic_folder": "", "http_critic.url": ""}
    return config_lib.replaced(config, changes)


def _protocol(config) -> diagnosis.Protocol:
    return diagnosis.Protocol(
        num_responses=config.diagnosis.num_responses,
        num_critiques=config.num_critiques,
        refinements_per_critique=config.refinements_per_critique,
        max_length=config.max_response_length,
        pass_threshold=config.pass_threshold,
        texts_per_slot=config.eval.texts_per_slot,
    )


def _report(config, of: session.Subject) -> None:
    results, threshold = of.results, config.pass_threshold
    kinds = {kind: results.lines(kind) for kind in config.diagnosis.kinds}
    summary = diagnosis.summarize(results.lines("responses"), kinds, pass_threshold=threshold)
    results.write("pass_rates.jsonl", diagnosis.pass_rates(results.lines("responses"), pass_threshold=threshold))
    results.write("summary.json", json.dumps({"weights": of.weights} | summary, indent=2) + "\n")
    console.say(f"{diagnosis.table(summary)}numbers and every text are in {results.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS)
