"""Trains with Critique-GRPO, arXiv 2506.03106.

Departures, from the paper or from its released code (as a table: configs/README.md), each marked where it is made:
- `objective.aggregate="constant"` weighs every token alike, as the released code does; Eq. 4 weighs a refined row n / k
  times an initial one (`"paper"`).
- Initial rows are clipped, refined ones are not (`objective.clip_initial`, `objective.clip_refined`). The paper's
  equations clip both, its code neither. A clip of the shaped ratio changes nothing of a right refinement, and takes all
  gradient from a wrong one's tokens of pi < 0.4 (gamma 0.1, clip 0.2), which the paper penalises (appendix F.2).
- No reference model and no KL term unless `objective.kl_coef` is set, no entropy bonus unless `objective.entropy_coef`
  is; the released code adds 0.001 of the entropy's token mean of a microbatch, about 2e-4 on the scale here.
- The released code refines every question; here those of which at most `refine.max_pass` of the responses pass. A group
  of which nothing is refined has n rows, one less than that of the GRPO that the paper compares with.
- The released code divides advantages by the standard deviation; here `objective.scale_by_std` does.
- The refine prompt is in other words, and asks for a solution that mentions neither attempt nor critique.
- Rows without a verdict, because their grader failed, are neither trained nor part of a baseline.

    python -m cgrpo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

`train` below is the algorithm, step by step; GRPO, Dr.GRPO and every ablation are the same loop with other values of
the configuration. `Run` is what stands beside it: it saves, logs, stops and evaluates.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("train", sys.argv[1:])

import contextlib
import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

import tqdm

from cgrpo_jax import batches, rollout
from cgrpo_jax import groups as groups_lib
from cgrpo_jax.datasets import mixture
from cgrpo_jax.errors import GradingError, Stopped, UserError
from cgrpo_jax.evaluation.held_out import HeldOut
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.inference.generators import Generator, Refiner, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator, Status
from cgrpo_jax.records import Problem, TrainRow, TrainState
from cgrpo_jax.runs import cli, initial_state, learners, load_questions, log, metrics, open_run, stages, warm_start
from cgrpo_jax.runs import engines as engines_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.iteration import CriticUpdates, Generated, Iteration
from cgrpo_jax.runs.rollout_writer import RolloutWriter
from cgrpo_jax.runs.trackers import Trackers
from cgrpo_jax.runtime import console, files, processes, profiling, signals, watchdog
from cgrpo_jax.training.learner import Updates


def main(config: Config, workdir: str, distributed: bool = False) -> None:
    """Trains; a second call with the same folder resumes.

    Stopped by SIGTERM, it saves what the last whole iteration left, and exits with `signals.stopped_status`; by Ctrl-C
    likewise, with 130.
    """
    processes.start(distributed=distributed, command={"the command": "train"})
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    stopped_by = 0
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_training,
            questions=load_questions.to_train_on,
            load_weights=False,
            trains=True,
            writes={"--workdir": workdir},
        )
        folder = open_run.open_folder(opened, held)
        writer = held.enter_context(open_run.rollout_writer(opened))
        trackers = held.enter_context(open_run.trackers(opened))
        run = Run(opened, folder, writer, trackers, stopping=held.enter_context(signals.catch_stop()))
        try:
            train(run)
        except Stopped as stopped:
            stopped_by = stopped.number
            run.stop(stopped_by)
        finally:
            run.close()
    if status := {int(signal.SIGTERM): stopped_status, int(signal.SIGINT): signals.STATUS}.get(stopped_by, 0):
        sys.exit(status)


def train(run: "Run") -> None:
    """Runs all iterations that are left: the algorithm, in the order of its steps."""
    seed, batch, method, grouping = run.settings.seed, run.settings.batch, run.settings.method, run.settings.grouping
    for number in run.iterations():
        with run.iteration(number):
            problems = run.questions(number)
            policy, critic, refiner = run.generators(number)  # the policy that samples is pi_old

            # 1. Respond: n responses to each question, scored once all n have ended.
            # 2. Critique (`inference.critic`): of each response that will be refined, or of all (`critique.when`).
            # 3. Refine: where all n failed (or as many as `refine.max_pass` says), each failed response is rewritten
            #    with its critique in view, and scored.
            # `rollout.solve` takes one question through these; nothing runs before `run.generate`, which runs all.
            # Off by default: `solve_all` draws another question where one teaches nothing, and `in_batch` takes a batch
            # of those solved (`max_extra_questions`); `judge` asks whether a response is right (`verdict_share`).
            solve = functools.partial(
                rollout.solve, policy, critic, method=method, tokenizer=run.tokenizer, refiner=refiner
            )
            judge = functools.partial(batches.judge, policy, method=method)
            teaches = functools.partial(groups_lib.has_gradient, grouping=grouping, seed=seed, iteration=number)
            solving = batches.solve_all(problems, batch, solve=solve, judge=judge, teaches=teaches)
            generated = run.generate(policy, critic, refiner, solving)
            trained = batches.in_batch(generated.solved, batch.num_groups, teaches=teaches)

            # 4. Select: k refinements a question, the highest R first, ties at random; of those with a verdict that do
            #    not speak of the critique (where `drop_mentions`).
            candidates = groups_lib.candidates(generated.refinements, drop_mentions=grouping.drop_mentions)
            kept = groups_lib.select(
                candidates, num_kept=grouping.num_kept, order=grouping.select, seed=seed, iteration=number
            )

            # 5. Re-anchor: a kept refinement joins its group as an answer to the question alone, pi(y' | q).
            groups = groups_lib.reanchor([one.responses for one in trained], kept, join=grouping.join)

            # 6. Advantage (`objective.group_advantages`): one baseline for the whole group, A = R - mean R.
            rows = groups_lib.train_rows(groups, grouping)
            # The copy of the weights that generates goes: the update needs its memory.
            del policy, critic, refiner, solve, judge, solving
            critiques = run.critic.batch(run.state, generated)  # of a critic that learns, by the weights that wrote

            # 7. Objective (`objective.policy_loss`): of initial tokens min(r A, clip(r) A), r = pi / pi_old; of refined
            #    ones rho A, rho = pi / (pi + gamma), or min(rho A, clip(rho) A) with `clip_refined`.
            # 8. Update (`Learner.update`): AdamW (`optimizer.kind`), in `optimizer.updates_per_batch` minibatches.
            updates = run.update(rows)
            # Off by default (`critic.train`): the critic learns too, by what its critiques achieved (`critic_rows`).
            of_critic = run.update_critic(critiques)
        run.end_iteration(
            Iteration(number, generated.problems, generated, candidates, groups, rows, updates, of_critic)
        )
    run.finish()


class Run:
    """What stands beside the algorithm: it begins, saves, logs, stops, evaluates and finishes.

    Args:
      opened: the run's models, questions and settings.
      folder: where it is kept.
      writer: writes its rollouts.
      trackers: show its metrics elsewhere.
      stopping: as `signals.catch_stop` gives it.

    Attributes:
      progress: how far the run is, as its checkpoints keep it.
      state: what the last whole iteration left.
      held_out: evaluates the weights.
      learner: applies the updates.
      critic: is trained beside the policy, where one learns.
    """

    def __init__(
        self,
        opened: open_run.OpenRun,
        folder: open_run.TrainingFolder,
        writer: RolloutWriter,
        trackers: Trackers,
        *,
        stopping: Callable[..., int],
    ):
        settings = opened.settings
        self.opened, self.settings, self.model, self.folder = opened, settings, opened.model, folder
        self.asked, self.tokenizer = opened.questions, opened.model.tokenizer
        self.writer, self.trackers, self.stopping = writer, trackers, stopping
        self.orchestrator, self.progress = Orchestrator(opened.grader), initial_state.Progress()
        self._state: TrainState | None = None
        self.clock = console.Clock()
        self.held_out = HeldOut(
            opened, folder.checkpoints, orchestrator=self.orchestrator, clock=self.clock, on_tick=self._tick
        )
        self.profiler = profiling.Profiler(opened.run.path / "profile", settings.kept.profile_steps)
        self.learner = learners.of_policy(settings, clock=self.clock)
        self.critic = learners.CriticRun(opened, clock=self.clock)
        self._bar: tqdm.tqdm | None = None  # of the iterations
        self._since, self._step_time = time.monotonic(), 0.0  # the latter of the last iteration
        self._said_untrained = False

    @property
    def state(self) -> TrainState:
        assert self._state is not None, "a run has a state once it has begun"
        return self._state

    @property
    def _shown(self) -> tqdm.tqdm:
        assert self._bar is not None, "the bar is of the iterations"
        return self._bar

    # --- what `train` asks for, in its order ------------------------------------------------------------------------

    def iterations(self) -> Iterator[int]:
        """Begins, or resumes, and yields the iterations that are left."""
        self._begin()
        first, number = self.progress.iteration, self.settings.num_iterations
        if passed := [step for step in self.settings.kept.profile_steps if step < first]:
            console.say(f"profile.steps {passed}: these iterations are over, and are not traced")
        self._bar = console.progress_bar(total=number, initial=first, desc="training")
        yield from range(first, number)
        self.close()

    @contextlib.contextmanager
    def iteration(self, number: int) -> Iterator[None]:
        """Traces the block, if that is asked for; saves what was before it where grading fails."""
        watchdog.iteration(number)
        with self.profiler.iteration(number):
            started = time.monotonic()
            try:
                yield
            except GradingError:  # nothing is lost: the same command does this iteration again
                self._keep(number, always=True)
                self.folder.checkpoints.wait()
                raise
            self._step_time = time.monotonic() - started

    def questions(self, number: int) -> list[Problem]:
        """Returns the questions of an iteration, then those that it may draw on, the same on all processes."""
        return mixture.draw(
            self.asked.training,
            self.asked.mixture,
            seed=self.settings.seed,
            step=number,
            batch_size=self.settings.batch.num_questions,
            before=self.progress.extra_questions,
            more=self.settings.batch.max_extra,
        )

    def generators(self, number: int) -> tuple[Generator, Critic, Generator | Refiner]:
        """Returns the policy that samples this iteration, pi_old, the critic, and who refines."""
        with self.clock("reshard"):
            weights, trained = self._weights(), self.critic.writer(self.state)
        policy = self.opened.policy(weights, iteration=number, step=int(self.state.step))
        critic = self.opened.critic_generator(policy, trained=trained, step=self.critic.num_updates)
        kind = self.settings.stages.kind_at(number)
        return policy, self.opened.critic(critic, kind=kind), self.opened.refiner(policy)

    def generate(
        self, policy: Generator, critic: Critic, refiner: Generator | Refiner, solving: Iterable[Coroutine]
    ) -> Generated:
        """Runs steps 1 to 3 of all questions together, each a coroutine."""
        orchestrator, before = self.orchestrator, self.opened.endpoint_counts()
        with self.clock("rollout"), running_engines(policy, critic.generator, refiner) as engines:
            found = orchestrator.run(list(solving), engines=engines, on_tick=self._tick)
            stats = [engine.take_stats() for engine in engines]
        self.clock.add("grade", orchestrator.grade_seconds)
        asked = metrics.endpoints_metrics(self.opened.endpoint_counts(), before)
        return Generated(batches.in_order(found), stats, orchestrator.timeouts, orchestrator.failures, asked)

    def update(self, rows: Sequence[Sequence[TrainRow]]) -> Updates:
        """Applies the updates of an iteration to the state; pi_old stays fixed meanwhile."""
        self._state, updates = self.learner.update(self.state, rows)
        return updates

    def update_critic(self, batch: learners.CriticBatch | None) -> CriticUpdates | None:
        """Applies the updates of a critic that learns, whose weights may be the policy's."""
        self._state, done = self.critic.update(self.state, batch)
        return done

    def end_iteration(self, done: Iteration) -> None:
        """Logs an iteration, saves it where that is due, and ends the run where too many updates were skipped."""
        self._write(self.writer.put, done)
        row = self._log(done)
        self._end(done.number + 1)
        if not (row["rows_trained"] or row["skipped_updates"] or self._said_untrained):
            self._said_untrained = True
            console.say(log.untrained(done, row))
        self._shown.set_postfix_str(log.bar_text(row))
        self._shown.update()

    def finish(self) -> None:
        """Evaluates the final weights, and writes and prints the summary."""
        watchdog.iteration(-1)
        after, solved_after = self.held_out.final(self._weights, step=self.progress.iteration)
        self._write(self.writer.wait)
        self.folder.checkpoints.wait()
        self.progress.seconds += time.monotonic() - self._since
        found = {"after": after, "solved_after": solved_after, "questions": len(self.asked.held_out)}
        summary = log.summary(self.progress, updates=int(self.state.step), **found)
        self._write(self.opened.run.write_summary, summary)
        where = f"metrics, rollouts, checkpoints and summary are in {self.opened.run.path}"
        console.say(f"{log.table(summary)}{where}", sys.stdout)

    # --- beginning and stopping ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Takes the state that the iterations start from: what the folder holds of it, or what a new run has."""
        initial = initial_state.resume(self.opened, self.folder) if self.folder.resumed else None
        if self.folder.resumed:
            initial_state.drop_after(self.opened, initial)
        fresh, going_on = initial is None, self._stop_if_asked
        if initial is None:
            evaluate = self.held_out.measure
            initial = initial_state.start(self.opened, evaluate=evaluate, clock=self.clock, going_on=going_on)
        self._state, self.progress = self.critic.begin(initial), initial.progress
        self.learner.skipped_in_a_row = initial.progress.skipped_in_a_row
        self.learner.base, self.learner.reference = initial.base, initial.reference
        if fresh:
            self.held_out.start(self.progress)
            self._keep(0, always=True)
        else:
            self.held_out.resume(self._weights, self.progress)
            self.folder.checkpoints.tidy()
        warm_start.forget(self.opened, self.folder.checkpoints)
        open_run.note_start(self.opened)
        trained = self.critic.writer(self.state)
        engines_lib.compile_engines(self.opened, self._weights(), clock=self.clock, going_on=going_on, critic=trained)

    def stop(self, number: int) -> None:
        """Saves what the last whole iteration left, once a signal has come."""
        self.close()
        begun, iteration = self._state is not None, self.progress.iteration
        if begun:
            self._keep(iteration, always=True)
            self.folder.checkpoints.wait()
        console.say(log.stopped(signal.Signals(number).name, iteration if begun else None))

    def close(self) -> None:
        """Ends the progress bar, so that what is said next stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def _end(self, iteration: int) -> None:
        """Saves after so many iterations, where that is due; ends the run where too many updates were skipped."""
        gave_up = any(one.has_given_up() for one in (self.learner, *self.critic.learners))
        self._keep(iteration, always=gave_up)
        if gave_up:
            self._give_up()

    def _give_up(self) -> None:
        """Stops after updates whose gradients were not finite; the iteration is done and saved, with what they left."""
        learner = next(one for one in (self.learner, *self.critic.learners) if one.has_given_up())
        self._write(self.opened.run.write_nonfinite_rows, learner.skipped)
        self.folder.checkpoints.wait()
        raise UserError(log.gave_up(learner, self.opened.run.nonfinite_rows, self.progress.iteration))

    def _stop_if_asked(self, *, late: bool = False) -> None:
        if number := self.stopping(late=late):
            raise Stopped(number)

    def _tick(self, status: Status, bar: tqdm.tqdm | None = None) -> None:
        """Shows how far the iteration is; all processes stop here if one is asked to."""
        log.show(self._shown if bar is None else bar, status)
        self._stop_if_asked(late=True)

    # --- evaluating, logging, saving ------------------------------------------------------------------------------

    def _weights(self) -> dict:
        """Returns the weights that generate: those that are trained, or the frozen ones with the adapters merged."""
        return self.model.to_generate(self.state.params, self.learner.base)

    def _log(self, done: Iteration) -> dict:
        """Writes and returns an iteration's metrics."""
        row = log.metrics_row(done, self.settings, adapters=self.learner.base is not None)
        row |= {"learning_rate": self.learner.learning_rate(int(self.state.step)), "step_time": self._step_time}
        self.progress.add(done, all_failed=row["frac_all_wrong"])
        row |= self.held_out.row(self._weights, self.progress, step=done.number + 1)
        row |= {"step": done.number, "num_tokens": self.progress.num_tokens}
        row |= {"num_compilations": processes.compilations(), **self.writer.metrics}
        row |= log.clocked_row(done, row, clock=self.clock, devices=self.model.mesh.devices)
        self._write(self.opened.run.append_metrics, row)
        self.trackers.log(done, row)
        return row

    def _write(self, function: Callable, *args) -> None:
        """Calls what writes text: on process 0 alone, and all fail where it does."""
        with files.by_one(self.opened.run.path) as writes:
            if writes:
                function(*args)

    def _keep(self, iteration: int, *, always: bool = False) -> None:
        """Saves the state after so many iterations, where that is due."""
        now = time.monotonic()
        self.progress.iteration = iteration
        self.progress.skipped_in_a_row = self.learner.skipped_in_a_row
        self.progress.critic_skipped_in_a_row = self.critic.skipped_in_a_row
        self.progress.seconds, self._since = self.progress.seconds + now - self._since, now
        last, every = self.settings.num_iterations, self.settings.kept.checkpoint_every
        is_best = self.progress.best is not None and self.progress.best["step"] == iteration
        due = always or is_best or iteration % every == 0 or iteration == last
        if due and self.folder.checkpoints.latest_step != iteration:
            self._write(self.writer.wait)  # a run that resumes from it finds the rollouts of all iterations before
            extra = dataclasses.asdict(self.progress)
            self.folder.checkpoints.save(iteration, self.critic.beside(self.state), extra)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags={"distributed": cli.DISTRIBUTED})
