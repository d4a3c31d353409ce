"""Evaluates a checkpoint on benchmarks: greedy pass@1, pass@k and maj@k of samples, each with a 95 % interval.

    python -m cgrpo_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

With `--refine`, also test-time refinement: the critic is asked about the greedy answer, and where it says that the
answer is wrong, the policy refines it. The same command again goes on with an evaluation that was killed.
"""

import contextlib
import functools
import json
import pathlib
import sys

from cgrpo_jax import assemble, cli, evaluation, generation, journal, may_change, runtime, scores, subject
from cgrpo_jax import config as config_lib
from cgrpo_jax.engine import Sampling
from cgrpo_jax.errors import UserError
from cgrpo_jax.parts import Results
from cgrpo_jax.pipeline import Pipeline
from cgrpo_jax.problems import load_problems
from cgrpo_jax.records import Author
from cgrpo_jax.writers import HttpWriter

FLAGS = {
    "distributed": cli.DISTRIBUTED,
    "refine": cli.Flag("also critique and refine at test time", kind=bool, default=False),
    "out": cli.Flag("folder of the results; by default WORKDIR/evaluation"),
}


def main(config, workdir: str, distributed: bool = False, refine: bool = False, out: str | None = None) -> None:
    """Writes every sample to `samples.jsonl` and the numbers to `summary.json`, and prints them as a table.

    The weights are the newest checkpoint of `WORKDIR`; where it has none, those that the configuration starts from.
    """
    runtime.start(distributed=distributed)
    results = Results(out or pathlib.Path(workdir) / "evaluation", may_change=may_change.EVALUATION)
    with contextlib.ExitStack() as held:
        now = subject.started(results, workdir)
        with runtime.agree("loading models and data"):
            config, model, critic_model = subject.load(config, now=now, prepare=_refining if refine else None)
            _, problems, skipped = load_problems(config, model.prompts)
            if not problems:
                raise UserError("nothing to evaluate on: the configuration has no held-out problems; set data.eval.")
            about = subject.about(config, workdir, results, problems, started=now) | {"refine": refine}
        params, source = assemble.trained_params(config, model, workdir)
        critic = _critic(config, model, critic_model, held) if refine else None
        runtime.decide(lambda: held.enter_context(results.open(about)), f"writing {results.path}")
        grader = generation.open_grader(config, held)
        with journal.evaluating() as bar:
            evaluation.answer_on_disk(
                model,
                params,
                problems,
                results=results,
                protocol=_protocol(config, refine=refine),
                pipeline=Pipeline(grader),
                critic=critic,
                on_tick=functools.partial(journal.show, bar),
            )
        if runtime.is_first():
            left_out = f" ({skipped['held-out']} were too long and left out)" if skipped["held-out"] else ""
            journal.say(f"{len(problems)} questions{left_out}, weights from {source}", sys.stdout)
            _report(config, results, about)


def _refining(config):
    """Returns the configuration whose engine has room for critiques and refinements."""
    if config.critique != "cot":
        raise UserError(
            f"--refine asks a critic that writes, but critique {config.critique!r} is made by a rule that knows the "
            "reward; set --config.critique=cot, and a critic if it is not the policy itself."
        )
    return config_lib.replaced(config, {"refine": "policy", "critique_schedule": ()})


def _critic(config, model, critic_model, held: contextlib.ExitStack):
    """Returns who criticises, greedily; None for the policy itself."""
    if critic_model:
        return evaluation.make_writer(*critic_model, Sampling(0.0), seed=config.seed, author=Author.CRITIC)
    if config.http_critic.url:
        http_critic = generation.open_http_critic(config, held)
        return HttpWriter(http_critic, model.prompts, config.seed, evaluation.STREAM, Sampling(0.0))
    return None


def _protocol(config, *, refine: bool) -> evaluation.Protocol:
    return evaluation.Protocol(
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


def _report(config, results: Results, about: dict) -> None:
    numbers = scores.summarize(
        results.lines("samples"), ks=tuple(config.eval.k), pass_threshold=config.pass_threshold, seed=config.seed
    )
    results.write("summary.json", json.dumps({"weights": about["weights"]} | numbers, indent=2) + "\n")
    journal.say(f"{scores.table(numbers)}numbers and every sample are in {results.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS)
