"""Compiles the engines of a run before its first iteration."""

import time
from collections.abc import Callable

from cgrpo_jax.runs import announce, build_inference, build_model
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runtime import console, processes


def compile_engines(
    opened: OpenRun,
    params: dict,
    *,
    clock: console.Clock,
    going_on: Callable[[], None] = lambda: None,
    critic: build_model.Frozen | None = None,
) -> None:
    """Compiles all that generates before the first iteration: what the data bring compiles nothing then.

    Args:
      opened: the run.
      params: the policy's weights, as generation reads them.
      clock: times it.
      going_on: called before each program; may raise.
      critic: one that is trained, where it has weights of its own.
    """
    settings = opened.settings
    others = {**opened.frozen, "critic": critic} if critic else opened.frozen
    if not settings.policy_samplings and not others:
        return  # nothing is ever generated
    console.say(f"engine: {build_inference.describe_slots(settings)}")
    number, read, started = processes.compilations(), processes.programs_read(), time.monotonic()
    engines = [("the engine", opened.model.engine, params, settings.policy_samplings)]
    for whose, (one, frozen) in others.items():
        engines.append((f"the {whose}'s engine", one.engine, frozen, settings.frozen_samplings[whose]))
    with clock("compile"):
        for name, engine, weights, samplings in engines:
            with console.progress_reports(f"compiling {name}") as report:

                def before(*progress, report=report) -> None:
                    report(*progress)
                    going_on()

                engine.compile(weights, samplings, on_program=before)
    announce.compiled(
        number=processes.compilations() - number,
        read=processes.programs_read() - read,
        seconds=time.monotonic() - started,
        kept=opened.config.compute.keep_programs,
    )
