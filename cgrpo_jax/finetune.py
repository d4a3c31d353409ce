"""Fine-tunes a model on rows: chats, prompts with completions, pairs of answers, or the rollouts of a run.

    python -m cgrpo_jax.finetune --config=configs/sft.py --config.data.train=chat.jsonl \\
        --config.model.folder=FOLDER --workdir=RUN

`finetune.loss` is `nll` (supervised; the prompt is masked), `rco` (a critic learns from what its critiques achieved,
arXiv 2506.22157) or `dpo` (arXiv 2305.18290; of critiques: DPCO). The same command again resumes; all other commands
take the run's folder as they take that of `cgrpo train`.

`finetune` below is the whole of it: each update draws its rows, in epochs that are permutations of all, and learns
them through the packer, the kernels and the optimiser of training.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("finetune", sys.argv[1:])

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Sequence

from cgrpo_jax import train
from cgrpo_jax.errors import Stopped
from cgrpo_jax.evaluation.held_out import HeldOut
from cgrpo_jax.records import TrainRow
from cgrpo_jax.runs import best_checkpoint, cli, finetune_log, load_questions, load_rows, log, open_run, stages
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.iteration import Generated, Iteration
from cgrpo_jax.runs.rollout_writer import RolloutWriter
from cgrpo_jax.runs.trackers import Trackers
from cgrpo_jax.runtime import console, processes, signals, watchdog
from cgrpo_jax.training.learner import Updates

FLAGS = {"distributed": cli.DISTRIBUTED}
_NOTHING = Generated([], [], 0, 0, {})  # an update that learns from rows generates nothing


def main(config: Config, workdir: str, distributed: bool = False) -> None:
    """Fine-tunes; a second call with the same folder resumes.

    Stopped by SIGTERM, it saves what the last whole update left, and exits with `signals.stopped_status`; by Ctrl-C
    likewise, with 130.
    """
    processes.start(distributed=distributed, command={"the command": "finetune"})
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    stopped_by = 0
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_finetuning,
            questions=load_questions.of_finetuning(config),
            load_weights=False,
            trains=True,
            writes={"--workdir": workdir},
        )
        opened, rows = load_rows.open_rows(opened)
        folder = open_run.open_folder(opened, held)
        writer = held.enter_context(open_run.rollout_writer(opened))
        trackers = held.enter_context(open_run.trackers(opened))
        run = Run(opened, folder, writer, trackers, rows=rows, stopping=held.enter_context(signals.catch_stop()))
        try:
            finetune(run)
        except Stopped as stopped:
            stopped_by = stopped.number
            run.stop(stopped_by)
        finally:
            run.close()
    if status := {int(signal.SIGTERM): stopped_status, int(signal.SIGINT): signals.STATUS}.get(stopped_by, 0):
        sys.exit(status)


def finetune(run: "Run") -> None:
    """Runs all updates that are left."""
    for number in run.iterations():
        with run.iteration(number):
            batch = run.batch(number)
            updates = run.update(batch)
        run.end_update(number, batch, updates)
    run.finish()


class Run(train.Run):
    """What stands beside it: what stands beside training, with rows in the place of questions.

    An iteration is one update, and generates nothing; held-out rows are measured beside held-out questions.

    Args:
      opened, folder, writer, trackers, stopping: as for `train.Run`.
      rows: what is learnt, and what the loss is measured on.
    """

    def __init__(
        self,
        opened: open_run.OpenRun,
        folder: open_run.TrainingFolder,
        writer: RolloutWriter,
        trackers: Trackers,
        *,
        rows: load_rows.Rows,
        stopping: Callable[..., int],
    ):
        super().__init__(opened, folder, writer, trackers, stopping=stopping)
        self.rows = rows
        self.held_out = HeldOut(
            opened,
            folder.checkpoints,
            orchestrator=self.orchestrator,
            clock=self.clock,
            on_tick=self._tick,
            also=self._losses if rows.held_out else None,
        )
        if rows.kept:
            self._write(opened.run.write_kept_rows, rows.kept)

    def batch(self, number: int) -> list[list[TrainRow]]:
        """Returns the rows of an update, the same on all processes."""
        self._stop_if_asked()
        settings = self.settings
        return self.rows.batch(seed=settings.seed, step=number, batch_size=settings.questions_per_iteration)

    def end_update(self, number: int, batch: Sequence[Sequence[TrainRow]], updates: Updates) -> None:
        """Logs an update, saves it where that is due, and ends the run where too many were skipped."""
        row = finetune_log.metrics_row(
            batch, updates, self.model.config, adapters=self.learner.base is not None
        )  # fmt: skip
        row |= {"learning_rate": self.learner.learning_rate(int(self.state.step)), "step_time": self._step_time}
        row["epoch"] = (number + 1) * len(batch) / len(self.rows.training)
        self.progress.num_tokens += int(row["tokens_trained"])
        row |= self.held_out.row(self._weights, self.progress, step=number + 1)
        row |= {"step": number, "num_tokens": self.progress.num_tokens}
        row["num_compilations"] = processes.compilations()
        row |= finetune_log.clocked_row(row, clock=self.clock, devices=self.model.mesh.devices)
        self._write(self.opened.run.append_metrics, row)
        self.trackers.log(Iteration(number, [], _NOTHING, [], [], batch, updates), row)
        self._end(number + 1)
        if "loss" in row:
            self._shown.set_postfix_str(f"loss {row['loss']:.4f}, epoch {row['epoch']:.2f}")
        self._shown.update()

    def finish(self) -> None:
        """Evaluates the final weights, and writes and prints the summary."""
        watchdog.iteration(-1)
        after, solved_after = self.held_out.final(self._weights, step=self.progress.iteration)
        self.folder.checkpoints.wait()
        self.progress.seconds += time.monotonic() - self._since
        found = {"after": after, "solved_after": solved_after, "questions": len(self.asked.held_out)}
        summary = log.summary(self.progress, updates=int(self.state.step), **found) | {"rows": len(self.rows.training)}
        self._write(self.opened.run.write_summary, summary)
        where = f"metrics, checkpoints and summary are in {self.opened.run.path}"
        console.say(f"{log.table(summary, tokens='learnt')}{where}", sys.stdout)

    def _begin(self) -> None:
        """Begins as training does; then measures the loss before the first update, and keeps it with its checkpoint."""
        super()._begin()
        before = self.progress.eval_before or {}
        if not self.rows.held_out or self.progress.iteration or best_checkpoint.LOSS in before:
            return
        self.progress.eval_before = {**before, **self._losses()}
        self.held_out.start(self.progress)
        self.folder.checkpoints.wait()
        self.folder.checkpoints.amend(0, dataclasses.asdict(self.progress))

    def _weights(self) -> dict:
        """Returns the weights that generate, where anything does."""
        return super()._weights() if self.asked.held_out else {}

    def _losses(self) -> dict[str, float]:
        return self.learner.losses(self.state.params, self.rows.measured)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS, finetunes=True)
