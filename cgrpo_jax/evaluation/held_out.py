"""The evaluations of a training run: before, meanwhile and after; and which of its checkpoints they make the best."""

import dataclasses
from collections.abc import Callable, Mapping

import tqdm

from cgrpo_jax.errors import GradingError, Stopped
from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.inference.orchestrator import Orchestrator, Status
from cgrpo_jax.runs import best_checkpoint, log
from cgrpo_jax.runs.initial_state import Progress
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runtime import console
from cgrpo_jax.training.checkpoint import Checkpoints

# Held-out metrics, and which questions are solved (`benchmark.solved`); None of both without held-out questions.
Found = tuple[dict | None, list[bool | None] | None]
Weights = Callable[[], dict]  # as generation reads them, gathered where they are needed


class HeldOut:
    """Evaluates a training run.

    The best checkpoint is noted in `Progress.best`, which is saved with the weights, and stays beside the newest ones.

    Args:
      opened: the run.
      checkpoints: those of the run.
      orchestrator, clock: those of the run.
      on_tick: called with how far an evaluation is, and its bar; may raise `Stopped`.
    """

    def __init__(
        self,
        opened: OpenRun,
        checkpoints: Checkpoints,
        *,
        orchestrator: Orchestrator,
        clock: console.Clock,
        on_tick: Callable[[Status, tqdm.tqdm], None],
        also: Callable[[], Mapping[str, float]] | None = None,
    ):
        self._opened, self._checkpoints = opened, checkpoints
        self._orchestrator, self._clock, self._on_tick = orchestrator, clock, on_tick
        self._also = also
        self._settings = opened.settings.evaluation
        self._last: tuple[int, Found] | None = None  # after how many iterations, and what was found

    def measure(self, params: dict) -> Found:
        """Evaluates weights on all held-out questions."""
        opened = self._opened
        if not opened.questions.held_out:
            return None, None
        with self._clock("evaluate"), log.stage_bar("evaluating") as bar:
            result, groups = benchmark.evaluate(
                opened.policy(params, iteration=benchmark.STREAM),
                opened.questions.held_out,
                protocol=benchmark.protocol_of(opened.settings),
                orchestrator=self._orchestrator,
                on_tick=lambda status: self._on_tick(status, bar),
            )
        return result, benchmark.solved(groups, opened.settings.method.pass_threshold)

    def start(self, progress: Progress) -> None:
        """Makes the weights before the first iteration, which `progress.eval_before` is of, the best ones so far."""
        self._rate(progress, progress.eval_before, step=0)

    def resume(self, weights: Weights, progress: Progress) -> None:
        """Takes up what a resumed run has found, and makes the evaluation that a signal has cut short before."""
        best, wanted = progress.best, self._settings.keep_best
        if best and best["metric"] != wanted:
            progress.best = None
        elif best and not self._checkpoints.keep(best["step"]):
            console.say(f"the best checkpoint, of step {best['step']}, is gone; a later one takes its place")
            progress.best = None
        due, progress.evaluation_due = progress.evaluation_due and bool(wanted), False
        if due:
            self._evaluate(weights, progress, step=progress.iteration)
            self._checkpoints.amend(progress.iteration, dataclasses.asdict(progress))

    def row(self, weights: Weights, progress: Progress, *, step: int) -> dict[str, float]:
        """Returns the metrics after so many iterations, if they are due.

        Stopped here, the last iteration is done all the same: it is saved, without these, when the next one begins.
        """
        wanted = self._settings
        last = bool(wanted.keep_best) and step == self._opened.settings.num_iterations
        if not last and (not wanted.every or step % wanted.every):
            return {}
        try:
            result = self._evaluate(weights, progress, step=step)
        except Stopped:
            progress.evaluation_due = True
            return {}
        if result is None:
            return {}
        if number := len(self._opened.questions.held_out):
            result = {**result, "questions": number}
        return {f"eval/{name}": value for name, value in result.items()}

    def final(self, weights: Weights, *, step: int) -> Found:
        """Evaluates the final weights, those after so many iterations; what was found of the same ones stays so."""
        return self._last[1] if self._last and self._last[0] == step else self._measure_all(weights)

    def _measure_all(self, weights: Weights) -> Found:
        """Returns `measure` of the weights, where there are questions, with the other numbers of them."""
        result, solved = self.measure(weights()) if self._opened.questions.held_out else (None, None)
        return (result, solved) if self._also is None else ({**(result or {}), **self._also()}, solved)

    def _evaluate(self, weights: Weights, progress: Progress, *, step: int) -> dict | None:
        try:
            found = self._measure_all(weights)
        except GradingError as error:
            console.say(f"the evaluation after iteration {step - 1} is left out: {error}")
            return None
        self._last = step, found
        self._rate(progress, found[0], step=step)
        return found[0]

    def _rate(self, progress: Progress, result: Mapping[str, float] | None, *, step: int) -> None:
        if wanted := self._settings.keep_best:
            progress.best = best_checkpoint.better(progress.best, wanted, result, step=step)
            self._checkpoints.keep(progress.best["step"] if progress.best else None)
