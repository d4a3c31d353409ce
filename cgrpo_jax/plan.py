"""Finds out whether a run fits a TPU slice, and how fast it can be there, before the slice is rented.

    python -m cgrpo_jax.plan --config=configs/qwen3_8b.py --topology=v5p:2x2x4,v6e:4x4

Compiles the very programs that training runs, with the real compiler, on a machine without a TPU (extra `tpu`); takes
minutes, fewer with `--nocosts`. Several topologies are compared side by side. Exits with 0 if the run fits all of them,
with 3 if not.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.planning import programs
from cgrpo_jax.planning.planner import KINDS, Plan
from cgrpo_jax.runs import cli, validate
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.settings import with_lengths
from cgrpo_jax.runs.variants import Variants
from cgrpo_jax.runtime import chips, console

FLAGS = {
    "topology": cli.Flag("TPU slices, or several to compare: v5p:2x2x4,2xv6e:16x16"),
    "json": cli.Flag("file to write the plan to", is_path=True),
    "costs": cli.Flag("plan memory alone, without FLOPs, bytes and collectives: a third of the time", bool, True),
}
_DOES_NOT_FIT = 3


def main(config: Config, topology: str, json: str | None, costs: bool = True) -> None:
    """Plans for each topology, prints the tables, and exits with 3 if one does not hold the run."""
    validate.check(config)
    validate.check_generates(config, command="plan")
    names = topology.split(",")
    if json:
        check_target(pathlib.Path(json))
    # All mistakes come to light before the first minute of compiling.
    config = with_lengths(config)
    planners = [planner_lib.Planner(Variants(config), name, say=console.say) for name in names]
    plans = [planner.plan(costs=costs) for planner in planners]
    console.say(table(plans), sys.stdout)
    if json:
        write_json(json, [record(one) for one in plans])
    if not all(plan.fits for plan in plans):
        sys.exit(_DOES_NOT_FIT)


def record(plan: Plan) -> dict:
    """Returns a plan as `--json` writes it; sizes in bytes and costs are of one device."""
    return {
        "topology": plan.topology,
        "fits": plan.fits,
        "hbm_limit_bytes": plan.hbm_limit_bytes,
        "phases": [{"name": name, "peak_bytes": peak} for name, peak in plan.phases.items()],
        "programs": [
            {
                "name": one.name,
                "hbm_bytes": dict(one.hbm_bytes),
                "flops": one.cost and one.cost.flops,
                "bytes": one.cost and one.cost.bytes,
                "collectives": one.cost and dict(one.cost.collectives),
                "dcn_bytes": one.cost and one.cost.dcn,
                "seconds_bound": one.seconds_bound,
                "runs": one.per_iteration,
            }
            for one in plan.programs
        ],
        "suggestion": plan.suggestion,
    }


def check_target(file: pathlib.Path) -> None:
    """Raises a `UserError` where `--json` names what can't be written."""
    if not file.absolute().parent.is_dir():
        raise UserError(f"--json {file} is in no folder; make {file.parent} first.")
    if file.is_dir():
        raise UserError(f"--json {file} is a folder; give a file.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"--json {file} can't be written; give another file.")


def write_json(file: str, records: Sequence[dict]) -> None:
    """Writes a record a topology as `--json` asks for it: one alone as it is."""
    text = json.dumps(records[0] if len(records) == 1 else records, indent=2)
    try:
        pathlib.Path(file).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {file} can't be written ({error.strerror}); give another file.") from error


# --- the tables ---------------------------------------------------------------------------------------------------


def table(plans: Sequence[Plan]) -> str:
    """Returns what each program of each plan needs and costs, and the plans side by side."""
    return "\n".join([*(_programs(plan) for plan in plans), _compared(plans)])


def _programs(plan: Plan) -> str:
    costed = any(one.cost for one in plan.programs)
    lines = [
        f"{plan.topology}, per device: GiB of HBM while a program runs" + ("; cost of one run of it" if costed else ""),
        f"{'':<20}{'weights':>9}{'optimiser':>10}{'KV cache':>9}{'other':>8}{'total':>8}"
        + (f"{'TFLOP':>11}{'GB moved':>11}{'GB sent':>10}{'bound s':>10}  {'by':<12}{'runs':>5}" if costed else ""),
    ]
    for one in plan.programs:
        sizes = [one.hbm_bytes[kind] / chips.GIB for kind in KINDS]
        line = f"{one.name:<20}{sizes[0]:>9.2f}{sizes[1]:>10.2f}{sizes[2]:>9.2f}{sizes[3]:>8.2f}{sum(sizes):>8.2f}"
        if not costed:
            lines.append(line)
            continue
        if one.cost is None or one.seconds_bound is None:
            line += f"{'?':>11}{'?':>11}{'?':>10}{'?':>10}  {'':<12}"
        else:
            sent = sum(one.cost.collectives.values())
            line += f"{one.cost.flops / 1e12:>11.3f}{one.cost.bytes / 1e9:>11.2f}{sent / 1e9:>10.3f}"
            line += f"{one.seconds_bound:>10.3f}  {one.limit:<12}"
        lines.append(f"{line}{one.per_iteration:>5}")
        if one.cost and one.cost.collectives:
            sent = ", ".join(f"{kind} {size / 1e9:.3f}" for kind, size in one.cost.collectives.items() if size)
            lines.append(f"{'':<20}GB sent: {sent}")
        if one.cost and one.cost.dcn:
            lines.append(f"{'':<20}GB sent to other slices (DCN): {one.cost.dcn / 1e9:.3f}; not in its bound")
    return "\n".join(lines) + "\n"


def _compared(plans: Sequence[Plan]) -> str:
    width = max(12, *(len(plan.topology) + 2 for plan in plans))

    def row(label: str, value: Callable[[Plan], str]) -> str:
        return f"{label:<26}" + "".join(f"{value(plan):>{width}}" for plan in plans)

    def size(number: int | None) -> str:
        return "-" if number is None else f"{number / chips.GIB:.2f}"

    lines = [row("", lambda plan: plan.topology), row("GiB of HBM there", lambda plan: size(plan.hbm_limit_bytes))]
    for phase in programs.PHASES:
        if any(phase in plan.phases for plan in plans):
            lines.append(row(f"GiB in {phase}", lambda plan, phase=phase: size(plan.phases.get(phase))))
    lines.append(row("fits", lambda plan: "yes" if plan.fits else "no"))
    costs = [
        row("bound s per iteration", lambda plan: "?" if (seconds := plan.seconds) is None else f"{seconds:.1f}"),
        row(
            "sampled tokens/s",
            lambda plan: "?" if (seconds := plan.seconds) is None else f"{plan.sampled_tokens / seconds:.0f}",
        ),
        "Bounds: all at the chip's published peaks; responses, critiques, refinements at full length, every question",
        "refined, no critique written twice, no row dropped; programs one after another; no evaluation.",
    ]
    lines += costs if any(one.cost for plan in plans for one in plan.programs) else []
    for plan in plans:
        if not plan.fits:
            change = (
                f"fits with {plan.suggestion}" if plan.suggestion else "no change found that fits; use a larger slice"
            )
            lines.append(f"{plan.topology} does not fit: {change}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, require=("config", "topology"), flags=FLAGS)
