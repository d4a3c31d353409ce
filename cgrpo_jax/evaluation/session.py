"""What `evaluate`, `diagnose` and `collect` share: the folder of their results, and how a signal stops them."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping

from cgrpo_jax.datasets.fingerprints import TASK
from cgrpo_jax.errors import Stopped
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.orchestrator import Status
from cgrpo_jax.runs import log
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runtime import console, processes, signals


def open_results(
    results: Results, opened: OpenRun, held: contextlib.ExitStack, *, more: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Makes the folder of results, or checks that those in it are of the same run; returns what their numbers are of.

    That is `weights`, what they call these, and of a made-up task `task`, with its version.

    Args:
      results: the folder, which `held` keeps others out of.
      opened: the run.
      held: closes it.
      more: what the results depend on beside weights, questions and configuration.

    Raises:
      UserError: the folder holds results of something else, or can't be written.
    """
    weights = opened.name_of_weights(beside=results.path)
    about = {"started": opened.run.started().isoformat(), "weights": weights, "config": opened.config_json()}
    about |= {**opened.inputs, **(more or {})}
    processes.decide(lambda: held.enter_context(results.open(about)), f"writing {results.path}")
    task = opened.inputs.get(TASK)
    return {"weights": weights} | ({"task": task} if task else {})


@contextlib.contextmanager
def stoppable(
    results: Results, stopped_status: int, *, doing: str = "evaluating"
) -> Iterator[Callable[[Status], None]]:
    """Gives an `on_tick` that shows how far the block is, and ends the program there if SIGTERM or Ctrl-C has come.

    Args:
      results: what the block writes; the last line says what of it stays.
      stopped_status: exit status after SIGTERM, as `signals.stopped_status` returns it; Ctrl-C's is 130.
      doing: what the block does, in a word.

    Raises:
      SystemExit: it was stopped.
    """
    try:
        with signals.catch_stop() as stopping, log.stage_bar(doing) as bar:

            def tick(status: Status) -> None:
                log.show(bar, status)
                if number := stopping(late=True):
                    raise Stopped(number)

            yield tick
    except Stopped as stopped:
        kept = " and ".join(f"{done} of {total} questions in {name}" for name, (done, total) in results.whole.items())
        name = signal.Signals(stopped.number).name
        console.say(f"stopped by {name}; {results.path} keeps {kept}; the same command resumes it")
        sys.exit(signals.STATUS if stopped.number == signal.SIGINT else stopped_status)
