"""What an evaluation and a diagnosis begin with: a model and its weights, questions, a critic, an open folder."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.datasets.problems import load_problems
from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.chat_client import ChatClient
from cgrpo_jax.inference.generators import Generator, RemoteGenerator
from cgrpo_jax.inference.orchestrator import Orchestrator, Status
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import Author, Problem
from cgrpo_jax.runs import build_inference, build_model, log, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, processes, signals
from cgrpo_jax.training.checkpoint import SavedWeights


@dataclasses.dataclass(frozen=True)
class Subject:
    """What answers questions, and where its answers go.

    Attributes:
      config: the configuration that the engine was built for.
      model, params: the policy, and its weights as generation reads them.
      source: where these come from.
      critic_model: the frozen critic and its weights, if there is one.
      http_critic: the endpoint that writes critiques, on process 0, if there is one.
      problems: the questions.
      skipped: how many were too long and left out.
      results: the open folder.
      weights: what the results call the weights.
      orchestrator: with the grader.
    """

    config: Mapping
    model: build_model.Model
    params: dict
    source: str
    critic_model: tuple[build_model.Model, dict] | None
    http_critic: ChatClient | None
    problems: Sequence[Problem]
    skipped: int
    results: Results
    weights: str
    orchestrator: Orchestrator


def begin(
    config,
    workdir: str,
    results: Results,
    held: contextlib.ExitStack,
    *,
    kind: str,
    choose: Callable[[Mapping, list[Problem]], list[Problem]],
    prepare: Callable | None = None,
    more: Mapping[str, object] | None = None,
) -> Subject:
    """Checks all that a user can get wrong, loads, and opens the results, which it makes or finds to be of the same.

    Args:
      config: as it was given.
      workdir: folder of the run, whose newest checkpoint is taken; without one the weights that a run starts from.
      results: where answers go.
      held: closes what is opened.
      kind: of questions, "training" or "held-out".
      choose: `(configuration, questions) -> those to answer`; raises a `UserError` where they can't be.
      prepare: makes of the configuration the one that the engine is built for. Without it there is no critic.
      more: what the results depend on beside weights, questions and configuration.

    Raises:
      UserError: something of it can't be used, or the results are of something else.
    """
    started = processes.decide(
        lambda: results.started() or RunDir(workdir).started().isoformat(), f"reading {workdir} and {results.path}"
    )
    now = datetime.datetime.fromisoformat(started)  # what prompts that print the date go on to print
    with processes.agree("loading models and data"):
        validate.check(config)
        prepared = prepare(config) if prepare else config
        mesh = build_model.make_mesh(prepared)
        model = build_model.load_model(prepared, mesh, now=now)
        critic_model = build_model.load_critic(prepared, mesh, now=now) if prepare else None
        training, held_out, skipped = load_problems(prepared, model.prompts)
        problems = choose(config, {"training": training, "held-out": held_out}[kind])
        weights = _weights(config, workdir, results)
        about = {"started": started, "weights": weights, "config": config_lib.to_json(config)}
        about |= fingerprints.of_all(config.grader, {kind: problems}) | (more or {})
    params, source = build_model.trained_params(config, model, workdir)
    http_critic = build_inference.open_http_critic(prepared, held) if prepare else None
    processes.decide(lambda: held.enter_context(results.open(about)), f"writing {results.path}")
    orchestrator = Orchestrator(build_inference.open_grader(config, held))
    return Subject(
        prepared,
        model,
        params,
        source,
        critic_model,
        http_critic,
        problems,
        skipped[kind],
        results,
        weights,
        orchestrator,
    )


class _Stopped(Exception):
    """A signal has reached a process: raised on all, at one place, with its number."""


@contextlib.contextmanager
def stoppable(results: Results, stopped_status: int) -> Iterator[Callable[[Status], None]]:
    """Gives an `on_tick` that shows how far the block is, and ends the program there if SIGTERM or Ctrl-C has come.

    Args:
      results: what the block writes, of which the last line said tells what stays.
      stopped_status: exit status after SIGTERM, as `signals.stopped_status` returns it; Ctrl-C's is 130.

    Raises:
      SystemExit: it was stopped.
    """
    try:
        with signals.catch_stop() as stopping, log.evaluating() as bar:

            def tick(progress: Status) -> None:
                log.show(bar, progress)
                if number := stopping():
                    raise _Stopped(number)

            yield tick
    except _Stopped as stopped:
        (number,) = stopped.args
        kept = " and ".join(
            f"{done} of {total} questions in {name}.jsonl" for name, (done, total) in results.whole.items()
        )
        said = f"stopped by {signal.Signals(number).name}; {results.path} keeps {kept}; the same command goes on"
        console.say(said)
        sys.exit(signals.STATUS if number == signal.SIGINT else stopped_status)


def critic(of: Subject, sampling: Sampling, *, stream: int) -> Generator | RemoteGenerator | None:
    """Returns who writes critiques; None for the policy itself. `stream` is as for `benchmark.make_generator`."""
    if of.critic_model:
        return benchmark.make_generator(
            *of.critic_model, sampling, seed=of.config.seed, stream=stream, author=Author.CRITIC
        )
    if of.config.http_critic.url:
        return RemoteGenerator(of.http_critic, of.model.prompts, of.config.seed, stream, sampling)
    return None


def _weights(config, workdir: str, results: Results) -> str:
    """Names the weights that `trained_params` will return; of a run beside the results, wherever both lie."""
    checkpoints = RunDir(workdir).checkpoints
    if checkpoints.exists():
        return f"{os.path.relpath(checkpoints, results.path)}, step {_step(checkpoints)}"
    if config.model.init:
        return f"{config.model.init}, step {_step(pathlib.Path(config.model.init))}"
    return config.model.folder


def _step(folder: pathlib.Path) -> int:
    with SavedWeights(folder) as weights:
        return weights.step
