"""Evaluates a checkpoint on benchmarks: greedy pass@1, pass@k and maj@k of samples, each with a 95 % interval.

    python -m cgrpo_jax.evaluate --workdir=runs/quickstart

The configuration is the run's own, which `--config.KEY=VALUE` changes. With `--refine`, also test-time refinement: the
critic is asked about the greedy answer, and where it says that the answer is wrong, the policy refines it. The same
command again resumes an evaluation that was killed. With `--config=FILE` and a folder without a run, it evaluates the
weights that a configuration starts from.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("evaluate", sys.argv[1:])

import contextlib
import json
import sys
from collections.abc import Mapping

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import behaviours as behaviours_lib
from cgrpo_jax.evaluation import benchmark, session, summary
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.runs import cli, load_questions, open_run, resume_policy, stages
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console, places, processes, signals

FLAGS = {
    "distributed": cli.DISTRIBUTED,
    "refine": cli.Flag("also critique and refine at test time", kind=bool, default=False),
    "behaviours": cli.Flag("right answers, one a question, of which a judge says what they show", kind=int, default=0),
    "out": cli.Flag(
        "folder of the results; by default WORKDIR/evaluation", is_path=True, in_bucket=True, is_folder=True
    ),
    "step": cli.STEP,
}


def main(
    config: Config,
    workdir: str,
    distributed: bool = False,
    refine: bool = False,
    behaviours: int = 0,
    out: str | None = None,
    step: str | None = None,
) -> None:
    """Writes every sample to `samples.jsonl` and the numbers to `summary.json`, and prints them as a table.

    The weights are the newest checkpoint of `WORKDIR`, or that of --step; where it has none, those that the
    configuration starts from. Stopped by SIGTERM or Ctrl-C, it says what it keeps, and exits as training does.
    """
    command = {"the command": "evaluate", "--refine": refine, "--step": step}
    processes.start(distributed=distributed, command=command)
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    results = Results(out or places.place(workdir) / "evaluation", may_change=resume_policy.EVALUATION)
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_test_time_refinement if refine else stages.of_evaluation,
            questions=load_questions.to_evaluate_on,
            load_weights=True,
            writes={"--out" if out else "--workdir": results.path},
            started=results.started,
            step=cli.step_of(step),
        )
        judge = opened.grader.judge
        with processes.agree("looking for the judge"):
            if behaviours and judge is None and processes.is_first():
                raise UserError("--behaviours asks a judge; give judge.endpoint.url and judge.endpoint.model.")
        if not any(opened.grader.is_remote(one.grader) for one in opened.questions.held_out):
            results.may_change = (*results.may_change, "judge")  # it grades nothing, and may be asked afterwards
        of = session.open_results(results, opened, held, more={"refine": refine})
        policy = opened.policy(opened.params, iteration=benchmark.STREAM)
        sampling = opened.settings.greedy_critic_sampling
        critic = opened.critic_generator(policy, sampling=sampling) if refine else None
        problems = opened.questions.held_out
        with session.stoppable(results, stopped_status) as tick:
            benchmark.answer_on_disk(
                policy,
                problems,
                results=results,
                protocol=benchmark.protocol_of(opened.settings, refine=refine),
                orchestrator=Orchestrator(opened.grader),
                critic=critic,
                on_tick=tick,
            )
        if processes.is_first():
            skipped = opened.questions.skipped["held-out"]
            left_out = f" ({skipped} were too long and left out)" if skipped else ""
            console.say(f"{len(problems)} questions{left_out}, weights from {opened.weights}", sys.stdout)
            _report(results, opened.settings, of)
            if behaviours and judge is not None:
                _judge_behaviours(results, opened.settings, judge, most=behaviours)


def _report(results: Results, settings: RunSettings, of: Mapping[str, str]) -> None:
    numbers = summary.summarize(
        results.lines("samples"),
        ks=settings.evaluation.ks,
        pass_threshold=settings.method.pass_threshold,
        seed=settings.seed,
    )
    results.write("summary.json", json.dumps({**of, **numbers}, indent=2) + "\n")
    console.say(f"{summary.table(numbers)}numbers and every sample are in {results.path}", sys.stdout)


def _judge_behaviours(results: Results, settings: RunSettings, judge: behaviours_lib.Judge, *, most: int) -> None:
    threshold = settings.method.pass_threshold
    answers = behaviours_lib.right_answers(results.lines("samples"), threshold=threshold, most=most)
    records = behaviours_lib.judge_all(answers, judge)
    results.write(behaviours_lib.FILE, "".join(json.dumps(record) + "\n" for record in records))
    console.say(behaviours_lib.table(behaviours_lib.judged(results.path)), sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS, trains=False)
