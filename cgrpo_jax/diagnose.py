"""Diagnoses a checkpoint on its training questions: which it never solves, and which critiques help it there.

    python -m cgrpo_jax.diagnose --workdir=runs/quickstart

The configuration is the run's own, which `--config.KEY=VALUE` changes. The numbers of the paper's Tables 1 and 12. It
also writes `pass_rates.jsonl`, by which `data.pass_rates` drops questions that are too easy or too hard. The same
command again resumes a diagnosis that was killed; with further `diagnosis.kinds` it adds these.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("diagnose", sys.argv[1:])

import contextlib
import json
import sys
from collections.abc import Mapping

from cgrpo_jax.evaluation import diagnosis, session
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.runs import cli, load_questions, open_run, resume_policy, stages
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console, places, processes, signals

FLAGS = {
    "distributed": cli.DISTRIBUTED,
    "out": cli.Flag(
        "folder of the results; by default WORKDIR/diagnosis", is_path=True, in_bucket=True, is_folder=True
    ),
    "step": cli.STEP,
}


def main(
    config: Config, workdir: str, distributed: bool = False, out: str | None = None, step: str | None = None
) -> None:
    """Writes every text, the numbers (`summary.json`) and `pass_rates.jsonl`, and prints the numbers as a table.

    The weights are the newest checkpoint of `WORKDIR`, or that of --step; where it has none, those that the
    configuration starts from. Stopped by SIGTERM or Ctrl-C, it says what it keeps, and exits as training does.
    """
    processes.start(distributed=distributed, command={"the command": "diagnose", "--step": step})
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    results = Results(out or places.place(workdir) / "diagnosis", may_change=resume_policy.DIAGNOSIS)
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_diagnosis,
            questions=load_questions.to_diagnose,
            load_weights=True,
            writes={"--out" if out else "--workdir": results.path},
            started=results.started,
            step=cli.step_of(step),
        )
        of = session.open_results(results, opened, held)
        problems, policy = opened.questions.training, opened.policy(opened.params, iteration=diagnosis.STREAM)
        writes = opened.critic_generator(policy)
        with session.stoppable(results, stopped_status) as tick:
            shared = {
                "results": results,
                "protocol": _protocol(opened.settings),
                "orchestrator": Orchestrator(opened.grader),
                "on_tick": tick,
            }
            diagnosis.respond_on_disk(policy, problems, **shared)
            for kind in opened.settings.diagnosis.kinds:
                critic = opened.critic(writes if kind == "cot" else None, kind=kind)
                encode = opened.model.tokenizer.encode
                diagnosis.critique_on_disk(kind, policy, critic, problems, encode=encode, **shared)
        if processes.is_first():
            console.say(f"weights from {opened.weights}", sys.stdout)
            _report(results, opened.settings, of)


def _protocol(settings: RunSettings) -> diagnosis.Protocol:
    method = settings.method
    return diagnosis.Protocol(
        num_responses=settings.diagnosis.num_responses,
        num_critiques=method.num_critiques,
        refinements_per_critique=method.refinements_per_critique,
        max_length=method.max_length,
        pass_threshold=method.pass_threshold,
        texts_per_slot=settings.evaluation.texts_per_slot,
    )


def _report(results: Results, settings: RunSettings, of: Mapping[str, str]) -> None:
    threshold = settings.method.pass_threshold
    kinds = {kind: results.lines(kind) for kind in settings.diagnosis.kinds}
    summary = diagnosis.summarize(results.lines("responses"), kinds, pass_threshold=threshold, seed=settings.seed)
    results.write("pass_rates.jsonl", diagnosis.pass_rates(results.lines("responses"), pass_threshold=threshold))
    results.write("summary.json", json.dumps({**of, **summary}, indent=2) + "\n")
    console.say(f"{diagnosis.table(summary)}numbers and every text are in {results.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS, trains=False)
