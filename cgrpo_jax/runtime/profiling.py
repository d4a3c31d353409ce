"""Traces of chosen iterations, to see what their time goes to.

    python -m cgrpo_jax.train ... --config.profile.steps=3,4
    tensorboard --logdir=WORKDIR/profile     # with the plugin: pip install xprof

WORKDIR/profile/plugins/profile/iteration_3 then holds, for each host, what TensorBoard's profile plugin reads
(HOST.xplane.pb) and what https://ui.perfetto.dev opens as it is (HOST.trace.json.gz). Named in it are the iteration and
the stages that `time/STAGE` in `metrics.jsonl` gives the seconds of.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files, places


def check(steps: Sequence[int], *, num_iterations: int) -> None:
    """Checks the configuration's `profile.steps`.

    Raises:
      UserError: one of them is no iteration of the run.
    """
    if not all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in steps):
        raise UserError(f"profile.steps {tuple(steps)} must hold numbers of iterations, from 0 on; write 3,4.")
    if late := [step for step in steps if step >= num_iterations]:
        raise UserError(f"profile.steps {late[0]} never comes: the last of {num_iterations} is {num_iterations - 1}.")


class Profiler:
    """Traces iterations.

    Args:
      folder: where the traces are written; made when the first one is.
      steps: the iterations.

    Example:
      profiler = Profiler("runs/a/profile", (3,))
      for step in range(10):
          with profiler.iteration(step):
              ...  # of step 3 there is a trace, also if it fails
    """

    def __init__(self, folder: str | pathlib.Path, steps: Sequence[int]):
        self.folder = places.place(folder)
        self.steps = frozenset(steps)

    @contextlib.contextmanager
    def iteration(self, step: int) -> Iterator[None]:
        """Names what is done in the block as an iteration, and traces it if that is asked for.

        On every process of several. A trace that can't be written is reported; the run goes on without it.
        """
        with self._trace(step) if step in self.steps else contextlib.nullcontext():
            with jax.profiler.StepTraceAnnotation("iteration", step_num=step):
                yield

    @contextlib.contextmanager
    def _trace(self, step: int) -> Iterator[None]:
        options = jax.profiler.ProfileOptions()
        options.session_id = f"iteration_{step}"
        if jax.process_count() > 1:  # files are named after hosts, and two processes may be on one
            options.session_id += f"_process_{jax.process_index()}"
        # Every call of a Python function would be an event, of which a scheduler makes millions.
        options.python_tracer_level = 0
        begun, made = False, contextlib.ExitStack()
        try:
            with _told(step):
                # It is made first: JAX finds out only when it has nowhere to write.
                folder = made.enter_context(files.filled_folder(self.folder, last=""))
                jax.profiler.start_trace(folder, profiler_options=options)
                begun = True
            yield
        finally:
            with _told(step), made:
                if begun:
                    jax.profiler.stop_trace()


@contextlib.contextmanager
def _told(step: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # JAX's own errors are RuntimeErrors
        # Not only on the first process: it is the others' disks too.
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.stderr.write(f"iteration {step} has no trace: {why}\n")
