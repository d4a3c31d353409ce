"""Says how long an iteration's generation takes on a TPU slice, by simulation with lengths of texts.

    cgrpo simulate --config=configs/qwen3_8b.py --topology=v6e:4x4 --lengths='lognormal(mean=1500, sigma=0.8, max=6144)'
    cgrpo simulate --config=configs/qwen3_8b.py --topology=v6e:4x4,v5p:2x2x4 --lengths=runs/mine

The run's own engine and queue, driven with lengths in the place of a model, or with those of a run's rollouts; its
programs' costs come from the real compiler, on a machine without a TPU (extra `tpu`). Takes minutes for a large model.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Sequence

from cgrpo_jax import plan
from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import pricing, simulator
from cgrpo_jax.planning.pricing import Generation
from cgrpo_jax.planning.simulator import Lengths, Simulated, Simulator
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import cli, validate
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.settings import with_lengths
from cgrpo_jax.runs.variants import Variants
from cgrpo_jax.runtime import console

FLAGS = {
    "topology": cli.Flag("TPU slice, or several: v5p:2x2x4,v6e:4x4"),
    "lengths": cli.Flag(
        "of responses and refinements: lognormal(mean=1500, sigma=0.8, max=6144), uniform(min=8, max=64), fixed(1000); "
        "or rollouts, whose last iteration gives all lengths"
    ),
    "prompts": cli.Flag("of questions, where lengths are drawn", default=simulator.PROMPTS),
    "critiques": cli.Flag("of critiques, where lengths are drawn", default=simulator.CRITIQUES),
    "failed": cli.Flag("share of the questions that are refined, where lengths are drawn", float, 0.2),
    "seed": cli.Flag("of the draws", int, 0),
    "host": cli.Flag("milliseconds in which the host reads a call and dispatches what follows", float, 0.0),
    "json": cli.Flag("file to write the simulation to", is_path=True),
}
# Each column of the table: its name, the share of HBM, and whether the rest is at its peak and for nothing.
COLUMNS = (("peaks", 1.0, True), *((f"HBM {share:g}", share, False) for share in pricing.HBM_SHARES))


def main(
    config: Config,
    topology: str,
    lengths: str,
    prompts: str = simulator.PROMPTS,
    critiques: str = simulator.CRITIQUES,
    failed: float = 0.2,
    seed: int = 0,
    host: float = 0.0,
    json: str | None = None,
) -> None:
    """Simulates each topology and prints the tables."""
    validate.check(config, trains=False)  # what it teaches is no matter of generation
    validate.check_generates(config, command="simulate")
    if json:
        plan.check_target(pathlib.Path(json))
    given = Lengths(lengths, prompts, critiques, failed, seed)
    given.check()
    if not 0 <= host < math.inf:
        raise UserError(f"--host {host:g} is no time; use milliseconds, 0 or more.")
    config = with_lengths(config, trains=False)
    simulators = [Simulator(Variants(config), name, say=console.say) for name in topology.split(",")]
    found = [one.simulate(given, host=host / 1e3) for one in simulators]
    console.say(table(found), sys.stdout)
    if json:
        plan.write_json(json, [record(one) for one in found])


def record(one: Simulated) -> dict:
    """Returns a simulation as `--json` writes it; seconds by column of the table."""

    def column(found: Generation) -> dict:
        fields = dataclasses.asdict(found)
        stages = {stage.name.lower(): seconds for stage, seconds in found.stages.items()}
        return fields | {"stages": stages, "tokens_per_second_per_chip": found.tokens / found.seconds / one.num_chips}

    return {
        "topology": one.topology,
        "chips": one.num_chips,
        "groups": one.num_groups,
        "slots": one.num_slots,
        "questions": len(one.questions),
        "texts": {stage.name.lower(): one.texts(stage) for stage in Stage},
        "seconds": {name: column(one.at(share, peaks=peaks)) for name, share, peaks in COLUMNS},
    }


# --- the tables ---------------------------------------------------------------------------------------------------


def table(found: Sequence[Simulated]) -> str:
    """Returns where the seconds of each slice go, and the slices side by side."""
    return "\n".join([*map(_slice, found), _compared(found), _said()])


def _slice(one: Simulated) -> str:
    columns = [one.at(share, peaks=peaks) for _, share, peaks in COLUMNS]
    first = columns[0]

    def row(label: str, value: Callable[[Generation], float]) -> str:
        return f"{label:<28}" + "".join(f"{value(each):>11.1f}" for each in columns)

    texts = ", ".join(f"{one.texts(stage)} {stage.name.lower()}s" for stage in Stage if one.texts(stage))
    lines = [
        f"{one.topology}, {one.num_groups} data groups of {one.num_slots} slots: {texts}, {first.tokens} tokens",
        f"{'seconds':<28}" + "".join(f"{name:>11}" for name, *_ in COLUMNS),
    ]
    for part in pricing.PARTS:
        lines.append(row(part, lambda each, part=part: each.parts[part]))
        if part == "decode: keys and values":
            lines.append(row("  of these needed", lambda each: each.needed))
    lines.append(row("in all", lambda each: each.seconds))
    lines += [row(f"  {stage.name.lower()}s", lambda each, stage=stage: each.stages[stage]) for stage in Stage]
    lines += [
        row("  in the tail", lambda each: each.tail),
        row("tokens/s a chip", lambda each: each.tokens / each.seconds / one.num_chips),
        f"{first.steps} steps in {first.calls} calls, {first.ahead} of them dispatched before the last was read; "
        f"{first.occupancy:.1%} of slot-steps sample "
        f"({first.occupancy_waiting:.1%} while texts wait); {first.prompt_tokens} tokens prefilled, "
        f"{first.prompt_tokens / max(1, first.prompt_positions):.1%} of the positions that prefills compute",
    ]
    return "\n".join(lines) + "\n"


def _compared(found: Sequence[Simulated]) -> str:
    width = max(12, *(len(one.topology) + 2 for one in found))

    def row(label: str, value: Callable[[Simulated], str]) -> str:
        return f"{label:<28}" + "".join(f"{value(one):>{width}}" for one in found)

    lines = [row("", lambda one: one.topology)]
    for name, share, peaks in COLUMNS:
        lines.append(row(f"seconds, {name}", lambda one, c=(share, peaks): f"{one.at(c[0], peaks=c[1]).seconds:.1f}"))
    return "\n".join([*lines, row("chips", lambda one: str(one.num_chips))])


def _said() -> str:
    return (
        f"Simulated, on no chip: matrix units at {pricing.MATRIX_SHARE:g} of their peak, links at theirs, "
        f"{pricing.OPERATION_SECONDS * 1e6:g} microsecond an operation, {pricing.DISPATCH_SECONDS * 1e6:g} a call;\n"
        "peaks: all at the chip's published peaks, operations, calls and the host for nothing. Prompts that are drawn "
        "share no beginning."
    )


if __name__ == "__main__":
    cli.run(main, require=("config", "topology", "lengths"), flags=FLAGS)
