"""Collects rows to learn from: responses, critiques of them and refinements after these, graded, without an update.

    python -m cgrpo_jax.collect --workdir=runs/quickstart --config.collect.num_critiques=4

Files of the form of a run's rollouts (cgrpo_jax/datasets/ROLLOUTS.md), which pandas, `report` and others read. The
weights and the configuration are the run's own, which `--config.KEY=VALUE` changes: other questions (`data.train`), or
rows that were collected before (`collect.rows`), whose responses are criticised and refined again, by another critic or
another actor. The same command again resumes a collection that was killed. With `--config=FILE` and a folder without a
run, the weights that a configuration starts from write, such as those of `model.folder`.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("collect", sys.argv[1:])

import contextlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.evaluation import collection, collection_summary, session
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.runs import cli, load_questions, open_run, resume_policy, stages, start_weights
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.rollout_writer import RolloutWriter
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import agreement, console, places, processes, signals

FLAGS = {
    "distributed": cli.DISTRIBUTED,
    "out": cli.Flag("folder of the rows; by default WORKDIR/collected", is_path=True, in_bucket=True, is_folder=True),
    "step": cli.STEP,
}


def main(
    config: Config, workdir: str, distributed: bool = False, out: str | None = None, step: str | None = None
) -> None:
    """Writes the rows (`step_*.parquet`) and the numbers (`summary.json`), and prints the numbers as a table.

    The weights are the newest checkpoint of `WORKDIR`, or that of --step; where it has none, those that the
    configuration starts from. Stopped by SIGTERM or Ctrl-C, it says what it keeps, and exits as training does.
    """
    processes.start(distributed=distributed, command={"the command": "collect", "--step": step})
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    results = Results(out or places.place(workdir) / "collected", may_change=resume_policy.COLLECTION)
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_collection,
            questions=load_questions.to_collect,
            load_weights=True,
            writes={"--out" if out else "--workdir": results.path},
            started=results.started,
            step=cli.step_of(step),
        )
        settings, tokenizer = opened.settings, opened.model.tokenizer
        parts, more = _parts(opened)
        of = session.open_results(results, opened, held, more=more)
        seen = start_weights.num_updates(opened.run, step=opened.step)
        policy = opened.policy(opened.params, iteration=collection.STREAM, step=seen)
        asks = settings.stages.asks_critic
        critic = opened.critic(opened.critic_generator(policy) if asks else None, kind=settings.stages.first_kind)
        writer = held.enter_context(
            RolloutWriter(
                results.path, every=1, grader=settings.grader, reward_source="verifier", spell=tokenizer.spell
            )
        )
        with session.stoppable(results, stopped_status, doing="collecting") as tick:
            collection.collect_on_disk(
                policy,
                critic,
                parts,
                results=results,
                writer=writer,
                protocol=collection.protocol_of(settings),
                encode=tokenizer.encode,
                refiner=opened.refiner(policy),
                orchestrator=Orchestrator(opened.grader),
                on_tick=tick,
            )
        if processes.is_first():
            console.say(f"weights from {opened.weights}", sys.stdout)
            _report(results, settings, of, number=len(parts))


def _parts(opened: open_run.OpenRun) -> tuple[Sequence[collection.Part], dict[str, object]]:
    """Returns the parts of the collection, and what they depend on besides questions and configuration."""
    wanted, rows = opened.settings.collection, opened.settings.stages.rows
    if not rows:
        return collection.parts_of(opened.questions.training, size=wanted.questions_per_file), {}
    with processes.agree("reading the rows"):
        paths = rollout_questions.files(rows)
        digest = rollout_questions.digest(paths)
        parts = collection.parts_of_files(paths, limit=wanted.num_questions)
    agreement.check_same("rows", {"what collect.rows holds": digest})
    return parts, {"rows": digest}


def _report(results: Results, settings: RunSettings, of: Mapping[str, str], *, number: int) -> None:
    paths: list[pathlib.Path] = [results.path / rollouts.file_name(n) for n in range(number)]
    threshold = settings.method.pass_threshold
    have_verdicts = settings.stages.first_kind != "hint"
    summary = collection_summary.summarize(
        paths, pass_threshold=threshold, seed=settings.seed, have_verdicts=have_verdicts
    )
    results.write("summary.json", json.dumps({**of, **summary}, indent=2) + "\n")
    console.say(f"{collection_summary.table(summary)}rows and numbers are in {results.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS, trains=False)
