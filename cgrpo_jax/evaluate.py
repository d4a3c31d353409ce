"""Evaluates a checkpoint on benchmarks: greedy pass@1, pass@k and maj@k of samples, each with a 95 % interval.

    python -m cgrpo_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

With `--refine`, also test-time refinement: the critic is asked about the greedy answer, and where it says that the
answer is wrong, the policy refines it. The same command again goes on with an evaluation that was killed.
"""

import contextlib
import json
import pathlib
import sys

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import benchmark, session, summary
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import Problem
from cgrpo_jax.runs import cli, resume_policy
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import console, processes, signals

FLAGS = {
    "distributed": cli.DISTRIBUTED,
    "refine": cli.Flag("also critique and refine at test time", kind=bool, default=False),
    "out": cli.Flag("folder of the results; by default WORKDIR/evaluation"),
}


def main(config, workdir: str, distributed: bool = False, refine: bool = False, out: str | None = None) -> None:
    """Writes every sample to `samples.jsonl` and the numbers to `summary.json`, and prints them as a table.

    The weights are the newest checkpoint of `WORKDIR`; where it has none, those that the configuration starts from.
    Stopped by SIGTERM or Ctrl-C, it says what it keeps, and exits as training does.
    """
    processes.start(distributed=distributed)
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    results = Results(out or pathlib.Path(workdir) / "evaluation", may_change=resume_policy.EVALUATION)
    with contextlib.ExitStack() as held:
        of = session.begin(
            config, workdir, results, held,
            kind="held-out", choose=_all, prepare=_refining if refine else None, more={"refine": refine},
        )  # fmt: skip
        with session.stoppable(results, stopped_status) as tick:
            benchmark.answer_on_disk(
                of.model,
                of.params,
                of.problems,
                results=results,
                protocol=_protocol(config, refine=refine),
                orchestrator=of.orchestrator,
                critic=session.critic(of, Sampling(0.0), stream=benchmark.STREAM) if refine else None,
                on_tick=tick,
            )
        if processes.is_first():
            left_out = f" ({of.skipped} were too long and left out)" if of.skipped else ""
            console.say(f"{len(of.problems)} questions{left_out}, weights from {of.source}", sys.stdout)
            _report(config, of)


def _all(config, problems: list[Problem]) -> list[Problem]:
    if not problems:
        raise UserError("nothing to evaluate on: the configuration has no held-out problems; set data.eval.")
    return problems


def _refining(config):
    """Returns the configuration whose engine has room for critiques and refinements."""
    if config.critique != "cot":
        raise UserError(
            f"--refine asks a critic that writes, but critique {config.critique!r} is made by a rule that knows the "
            "reward; set --config.critique=cot, and a critic if it is not the policy itself."
        )
    return config_lib.replaced(config, {"refine": "policy", "critique_schedule": ()})


def _protocol(config, *, refine: bool) -> benchmark.Protocol:
    return benchmark.Protocol(
        num_samples=config.eval.num_samples,
        ks=tuple(config.eval.k),
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        max_length=config.max_response_length,
        pass_threshold=config.pass_threshold,
        seed=config.seed,
        grader=config.grader,
        refine=refine,
        oracle=config.eval.oracle,
        max_critique_length=config.max_critique_length,
        texts_per_slot=config.eval.texts_per_slot,
    )


def _report(config, of: session.Subject) -> None:
    results = of.results
    numbers = summary.summarize(
        results.lines("samples"), ks=tuple(config.eval.k), pass_threshold=config.pass_threshold, seed=config.seed
    )
    results.write("summary.json", json.dumps({"weights": of.weights} | numbers, indent=2) + "\n")
    console.say(f"{summary.table(numbers)}numbers and every sample are in {results.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS)
