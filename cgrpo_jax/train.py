"""Trains with Critique-GRPO, arXiv 2506.03106.

    python -m cgrpo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

One iteration, in `Loop._step` below: respond, score, critique, refine, select, re-anchor, update. GRPO, Dr.GRPO and
every ablation are the same loop with other values of the configuration.

Departures from the paper, each marked where it happens:
- `aggregate="constant"` weighs every token alike, as the released code does; Eq. 4 weighs a refined row n / k times an
  initial one (`aggregate="paper"`).
- Both ratios are clipped, as in the paper's equations; its code clips neither (`clip_initial`, `clip_refined`).
- No reference model and no KL term unless `kl_coef` is set.
- The released code adds an entropy bonus of 0.001; here `entropy_coef` is 0 unless set.
"""

import collections
import contextlib
import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from cgrpo_jax import rollout
from cgrpo_jax.critiques import schedule
from cgrpo_jax.critiques.texts import mentions_critique
from cgrpo_jax.datasets import mixture
from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.evaluation.benchmark import evaluate, solved
from cgrpo_jax.inference import generators
from cgrpo_jax.inference.engine import Stats
from cgrpo_jax.inference.orchestrator import Orchestrator, Status, gather
from cgrpo_jax.records import Author, Problem, Rollout, TrainState
from cgrpo_jax.runs import build_inference, build_model, cli, initial_state, log, metrics, open_run
from cgrpo_jax.runtime import console, processes, profiling, signals
from cgrpo_jax.training import flops
from cgrpo_jax.training.learner import Learner

_INTERRUPTED = 128 + signal.SIGINT  # exit status, as a shell has it


def main(config, workdir: str, distributed: bool = False) -> None:
    """Trains; a second call with the same folder resumes.

    Stopped by SIGTERM, it saves what the last whole iteration left, and exits with `signals.stopped_status`; by Ctrl-C
    likewise, with 130.
    """
    processes.start(distributed=distributed)
    with processes.agree("starting"):
        stopped_status = signals.stopped_status()
    with contextlib.ExitStack() as held:
        stopped_by = Loop(config, open_run.open_run(config, workdir, held)).train()
    if status := {signal.SIGTERM: stopped_status, signal.SIGINT: _INTERRUPTED}.get(stopped_by, 0):
        sys.exit(status)


class Stopped(Exception):
    """A signal has reached a process: raised on all, at one place, with the state to save or None, and its number."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What an iteration has written and learnt.

    Attributes:
      problems, responses: its questions, and the responses to each.
      refinements, kept: of all questions, and those that entered the groups.
      stats: of each update.
      critiques_shown: whether refinements saw critiques.
      seconds: that it took.
    """

    problems: Sequence[Problem]
    responses: Sequence[Sequence[Rollout]]
    refinements: Sequence[Rollout]
    kept: Sequence[Rollout]
    stats: Sequence[Mapping[str, float]]
    critiques_shown: bool
    seconds: float


class Loop:
    """A run: its parts, and the iterations."""

    def __init__(self, config, parts: open_run.RunParts):
        self.config = config
        self.parts = parts
        self.model = parts.model
        self.run = parts.run
        self.orchestrator = Orchestrator(parts.grader)
        self.progress = initial_state.Progress()
        self.clock = console.Clock()
        self.profiler = profiling.Profiler(self.run.path / "profile", config.profile_steps)
        self.learner = Learner(
            self.model.config,
            mesh=self.model.mesh,
            dtype=self.model.dtype,
            optimizer=build_model.optimizer(config),
            learning_rate=build_model.learning_rate(config),
            loss=build_model.loss_settings(config),
            shape=build_model.pack_shape(config),
            updates_per_batch=config.updates_per_batch,
            rescore=config.old_logp == "trainer",
            remat=config.remat,
            max_nonfinite_updates=config.max_nonfinite_updates,
            clock=self.clock,
        )
        self.counts: collections.Counter = collections.Counter()  # of the iteration's critiques and refinements
        self.engine_stats: list[Stats] = []  # of the iteration's engines
        self.since = time.monotonic()

    # --- the algorithm ------------------------------------------------------------------------------------------

    def train(self) -> int:
        """Runs all iterations that are left, or those before a signal stops it, whose number it returns; else 0."""
        try:
            self._iterate(self._begin())
        except Stopped as stopped:
            state, number = stopped.args
            name = signal.Signals(number).name
            if state is None:
                console.say(f"stopped by {name} before the first iteration; the same command begins anew")
                return number
            self._keep(state, self.progress.iteration, always=True)
            self.parts.checkpoints.wait()
            console.say(f"stopped by {name} after iteration {self.progress.iteration}; the same command goes on")
            return number
        return 0

    def _iterate(self, state: TrainState) -> None:
        c = self.config
        if passed := [step for step in c.profile_steps if step < self.progress.iteration]:
            console.say(f"profile_steps {passed}: these iterations are over, and are not traced")
        # Closed whatever happens, so that what is said of it stands on a line of its own.
        with console.progress_bar(total=c.num_iterations, initial=self.progress.iteration, desc="training") as bar:
            for iteration in range(self.progress.iteration, c.num_iterations):
                with self.profiler.iteration(iteration):
                    try:
                        state, done = self._step(state, iteration, functools.partial(self._tick, state, bar))
                    except GradingError:  # nothing is lost: the same command begins this iteration anew
                        self._keep(state, iteration, always=True)
                        self.parts.checkpoints.wait()
                        raise
                row = self._log(iteration, done, state)
                self._keep(state, iteration + 1, always=self.learner.has_given_up())
                if self.learner.has_given_up():
                    self._give_up()
                bar.set_postfix_str(log.bar_text(row))
                bar.update()
        self._finish(state)

    def _step(self, state: TrainState, iteration: int, on_tick: Callable) -> tuple[TrainState, Done]:
        """One iteration: the algorithm, in the order of its steps."""
        c, started = self.config, time.monotonic()
        self.counts.clear()
        problems = self._problems(iteration)
        policy, critic = self._generators(state, iteration)
        shown = c.refine == "policy" and critic.kind != "none"

        responses, refinements = self._solve(policy, critic, problems, on_tick)  # 1. respond, 2. critique, 3. refine
        kept = self._select(refinements, iteration)  # 4. select
        groups = rollout.train_rows(  # 5. re-anchor, 6. advantage
            responses, kept, scale_by_std=c.scale_by_std, num_kept=c.num_refinements
        )
        del policy, critic  # and with them the weights that generate, which the update's memory has no room for
        state, stats = self.learner.update(state, groups)  # 7. objective, 8. update
        return state, Done(problems, responses, refinements, kept, stats, shown, time.monotonic() - started)

    def _tick(self, state: TrainState, bar, progress: Status) -> None:
        """Shows how far the iteration is; all processes stop here if one is asked to."""
        log.show(bar, progress)
        self._stop_if_asked(state)

    def _problems(self, iteration: int) -> list[Problem]:
        """Returns the questions of an iteration, the same on all processes."""
        c = self.config
        return mixture.draw(
            self.parts.train_problems,
            self.parts.mixture,
            seed=c.seed,
            step=iteration,
            batch_size=c.questions_per_iteration,
        )

    def _generators(self, state: TrainState, iteration: int) -> tuple[generators.Generator, rollout.Critic]:
        """Returns the policy that samples this iteration, pi_old, and the critic."""
        make = functools.partial(build_inference.make_generator, self.config, iteration=iteration)
        with self.clock("reshard"):
            weights = self._weights(state)
        policy = make(self.model, weights, author=Author.POLICY, weights_step=int(state.step))
        generator = policy
        if self.parts.critic_model:
            generator = make(*self.parts.critic_model, author=Author.CRITIC, weights_step=0)
        elif self.config.http_critic.url:
            generator = build_inference.make_remote_generator(
                self.config, self.model, self.parts.http_critic, iteration=iteration
            )
        kind = schedule.kind_at(iteration, critique=self.config.critique, schedule=self.config.critique_schedule)
        return policy, build_inference.make_critic(self.config, generator, kind=kind)

    def _weights(self, state: TrainState) -> dict:
        """Returns the weights that generate: those that are trained, or the frozen ones with the adapters merged."""
        return self.model.to_generate(state.params, self.learner.base)

    def _solve(self, policy, critic, problems, on_tick) -> tuple[list[list[Rollout]], list[Rollout]]:
        """Takes all questions through steps 1 to 3 at once: none waits for another."""
        endpoints = {"critic": self.parts.http_critic, "judge": self.orchestrator.grader.judge}
        before = {whose: one.counts for whose, one in endpoints.items() if one}
        with self.clock("rollout"), generators.running_engines(policy, critic.generator) as engines:
            questions = [self._solve_one(policy, critic, q, problem) for q, problem in enumerate(problems)]
            solved = self.orchestrator.run(questions, engines=engines, on_tick=on_tick)
            self.engine_stats = [engine.take_stats() for engine in engines]
        self.clock.add("grade", self.orchestrator.grade_seconds)
        self.clock.count("grade/timeouts", self.orchestrator.timeouts)
        self.clock.count("grade/failures", self.orchestrator.failures)
        for whose, counts in before.items():
            for name, number in metrics.endpoint_metrics(endpoints[whose].counts, counts, whose=whose).items():
                self.clock.count(name, number)
        for _, _, counts in solved:
            self.counts.update(counts)
        return [responses for responses, _, _ in solved], [row for _, rows, _ in solved for row in rows]

    async def _solve_one(self, policy, critic, q: int, problem: Problem):
        """Returns the responses to a question, the refinements of those that are refined, and counts."""
        c = self.config
        counts: collections.Counter = collections.Counter()
        encode = self.model.tokenizer.encode

        async def critique(rows: list[Rollout]):
            return await rollout.critique(critic, rows, problem=problem, encode=encode, num_critiques=c.num_critiques)

        async def score(refinements: list[Rollout]):
            if c.reward_source == "verifier":
                return await rollout.score(refinements, problem), collections.Counter()
            verdicts, judged = await critique(refinements)
            scored = await rollout.score_by_verdict(refinements, verdicts, problem, num_critiques=c.num_critiques)
            return scored, judged

        responses = await rollout.respond(  # 1. respond
            policy, problem, question=q, num_responses=c.num_responses, max_length=c.max_response_length
        )
        if c.reward_source == "verifier":
            responses = await rollout.score(responses, problem)
        critiques = None
        if c.critique_when == "all":  # 2. critique, all of them
            critiques, new = await critique(responses)
            counts += new
            if c.reward_source == "critic":  # the verdict is the reward
                responses = await rollout.score_by_verdict(responses, critiques, problem, num_critiques=c.num_critiques)
        failed = rollout.to_refine(responses, refine_max_pass=c.refine_max_pass, pass_threshold=c.pass_threshold)
        if c.refine == "none" or not failed:
            return responses, [], counts
        if c.refine == "solution":
            end_of_turn = self.model.tokenizer.end_of_turn_id
            refinements = rollout.insert_solution(failed, problem, encode=encode, end_of_turn=end_of_turn)
            refinements, judged = await score(refinements)
            return responses, refinements, counts + judged

        async def refine(row: Rollout):
            if critiques is None:
                written, new = await critique([row])  # 2. critique, of those that are refined
            else:
                written, new = rollout.critiques_of([row], critiques), collections.Counter()
            refinements, more = await rollout.refine(  # 3. refine
                policy,
                written,
                problem,
                max_length=c.max_response_length,
                refinements_per_critique=c.refinements_per_critique,
                show_critique=critic.kind != "none",
            )
            refinements, judged = await score(refinements)
            return refinements, new + more + judged

        refined = await gather([refine(row) for row in failed])
        return responses, [row for rows, _ in refined for row in rows], sum((new for _, new in refined), counts)

    def _select(self, refinements: list[Rollout], iteration: int) -> list[Rollout]:
        """Keeps k refinements a question, of those that mention no critique if that is asked for."""
        c = self.config
        if c.drop_critique_mentions:
            before = len(refinements)
            refinements = [row for row in refinements if not mentions_critique(row.text)]
            self.counts["dropped_mentions"] += before - len(refinements)
        return rollout.select(refinements, num_kept=c.num_refinements, seed=c.seed, iteration=iteration)

    # --- start, log, keep, finish -------------------------------------------------------------------------------

    def _begin(self) -> TrainState:
        """Returns the state that the iterations start from: what the folder holds of it, or what a new run has."""
        begun = initial_state.resume(self.config, self.parts, self.learner.optimizer) if self.parts.resumed else None
        if self.parts.resumed:
            self._write(self.run.truncate_after, begun.progress.iteration - 1 if begun else -1)
        fresh = begun is None
        if fresh:
            begun = initial_state.start(
                self.config,
                self.parts,
                self.learner.optimizer,
                evaluate=self._evaluate,
                clock=self.clock,
                going_on=functools.partial(self._stop_if_asked, None),
            )
        self.progress = begun.progress
        self.learner.skipped_in_a_row = begun.progress.skipped_in_a_row
        self.learner.base, self.learner.reference = begun.base, begun.reference
        if fresh:
            self._keep(begun.state, 0, always=True)
        open_run.compile_engines(self.config, self.parts, self._weights(begun.state), clock=self.clock)
        return begun.state

    def _evaluate(self, params, state: TrainState | None = None) -> tuple[dict | None, list[bool | None] | None]:
        """Returns held-out metrics, and which questions are solved (`benchmark.solved`).

        `state` is what is saved where SIGTERM comes meanwhile; None before there is any.
        """
        c = self.config
        if not self.parts.eval_problems:
            return None, None
        with self.clock("evaluate"), log.evaluating() as bar:
            result, groups = evaluate(
                self.model,
                params,
                self.parts.eval_problems,
                orchestrator=self.orchestrator,
                num_samples=c.eval.num_samples,
                ks=tuple(c.eval.k),
                temperature=c.eval.temperature,
                top_p=c.eval.top_p,
                max_length=c.max_response_length,
                pass_threshold=c.pass_threshold,
                seed=c.seed,
                on_tick=functools.partial(self._tick, state, bar),
            )
        return result, solved(groups, c.pass_threshold)

    def _log(self, iteration: int, done: Done, state: TrainState) -> dict:
        """Writes and returns an iteration's metrics, and writes its samples."""
        c = self.config
        row = log.metrics_row(
            done.responses, done.refinements, done.kept, self.counts, done.stats, self.engine_stats,
            refines=c.refine != "none", pass_threshold=c.pass_threshold,
            model=self.model.config, adapters=self.learner.base is not None,
        )  # fmt: skip
        row |= {"learning_rate": self.learner.learning_rate(int(state.step)), "step_time": done.seconds}
        if iteration == 0:
            self.progress.all_failed_start = row["frac_all_wrong"]
        self.progress.num_tokens += log.sampled_tokens(done.responses, done.refinements, self.counts)
        generated = sum(stats.tokens for stats in self.engine_stats)
        if c.eval.every and (iteration + 1) % c.eval.every == 0:
            # Stopped here, the iteration is done all the same: it is saved, without this, when the next one begins.
            try:
                result, _ = self._evaluate(self._weights(state), state)
                row |= {f"eval/{name}": value for name, value in (result or {}).items()}
            except Stopped:
                pass
            except GradingError as error:
                console.say(f"the evaluation after iteration {iteration} is left out: {error}")
        row |= {"step": iteration, "num_tokens": self.progress.num_tokens, "num_compilations": processes.compilations()}
        row |= self.clock.take({"rollout": generated, "update": row["tokens_trained"]})
        devices = self.model.mesh.devices
        row |= metrics.update_speed(
            row["update/model_flops"],
            row["time/update"],
            num_devices=devices.size,
            peak=flops.peak_flops(devices.flat[0]),
        )
        self._write(self.run.append_metrics, row)
        if iteration % c.samples_every == 0:
            lines = log.sample_lines(
                iteration, done.problems, done.responses, done.refinements,
                num=c.samples_per_iteration, critiques_shown=done.critiques_shown,
            )  # fmt: skip
            self._write(self.run.append_samples, lines)
        return row

    def _write(self, function: Callable, *args, **kw) -> None:
        """Calls what writes text: on process 0 alone, and all fail where it does."""
        with processes.agree(f"writing {self.run.path}"):
            if processes.is_first():
                function(*args, **kw)

    def _stop_if_asked(self, state: TrainState | None) -> None:
        if number := self.parts.stopping():
            raise Stopped(state, number)

    def _keep(self, state: TrainState, iteration: int, *, always: bool = False) -> None:
        c = self.config
        now = time.monotonic()
        self.progress.iteration = iteration
        self.progress.skipped_in_a_row = self.learner.skipped_in_a_row
        self.progress.seconds, self.since = self.progress.seconds + now - self.since, now
        due = always or iteration % c.checkpoint_every == 0 or iteration == c.num_iterations
        if due and self.parts.checkpoints.latest_step != iteration:
            self.parts.checkpoints.save(iteration, state, dataclasses.asdict(self.progress))

    def _give_up(self) -> None:
        """Stops after updates whose gradients were not finite; the iteration is done and saved, with what they left."""
        self._write(self.run.write_nonfinite_rows, self.learner.skipped)
        self.parts.checkpoints.wait()
        raise UserError(
            f"the gradient was not finite in {self.learner.skipped_in_a_row} updates in a row, which were skipped "
            f"(max_nonfinite_updates {self.config.max_nonfinite_updates}); the last one's rows are in "
            f"{self.run.nonfinite_rows}. The same command goes on after iteration {self.progress.iteration}."
        )

    def _finish(self, state: TrainState) -> None:
        after, solved_after = self._evaluate(self._weights(state), state)
        self.parts.checkpoints.wait()
        self.progress.seconds += time.monotonic() - self.since
        summary = log.summary(self.progress, updates=int(state.step), after=after, solved_after=solved_after)
        self._write(self.run.write_summary, summary)
        console.say(f"{log.table(summary)}metrics, samples, checkpoints and summary are in {self.run.path}", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags={"distributed": cli.DISTRIBUTED})
