"""What a chip computes, moves and sends as a slice grows and the batch with it, from plans: no TPU is needed.

    python tests/benchmarks/weak_scaling.py [--config=FILE] [--topologies=A,B,C] [--workdir=DIR] [--json=FILE]

Plans the configuration for each slice, with `questions_per_iteration` in proportion to its chips, and prints each
program's FLOPs, bytes and sent bytes a chip, beside those of the first slice. FLOPs should stay within 3 %, in every
program that computes: `reshard` only rounds the chip's own part of the weights, which shrinks as the slice grows. What
is sent grows with fsdp as (n - 1) / n. A plan takes minutes a slice; those that lie in DIR already (one file a slice)
are read, not made again. Exits with 1 where FLOPs do not stay.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

from cgrpo_jax.runs import config as config_lib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
WITHIN = 0.03
COMPUTES = 1e-4  # of the most FLOPs of a program, from which it counts as one that computes


def chips(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def plan(config: str, topology: str, questions: int, folder: pathlib.Path) -> dict:
    """Returns the plan for one slice, made now or found in the folder."""
    file = folder / f"{topology.replace(':', '-')}.json"
    if not file.is_file():
        partial = file.with_suffix(".partial")
        subprocess.run(
            [
                sys.executable, "-m", "cgrpo_jax.plan", f"--config={config}", f"--topology={topology}",
                f"--json={partial.absolute()}", f"--config.questions_per_iteration={questions}",
            ],
            cwd=REPOSITORY,
            check=True,
        )  # fmt: skip
        partial.rename(file)
    return json.loads(file.read_text(encoding="utf-8"))


def compare(plans: list[dict]) -> tuple[list[dict], str]:
    """Returns a row for each program and slice, and the table of them."""
    first = {program["name"]: program for program in plans[0]["programs"] if program["flops"] is not None}
    rows, lines = (
        [],
        [f"{'a chip':<18}{'slice':>12}{'TFLOP':>12}{'x':>8}{'GB moved':>12}{'x':>8}{'GB sent':>12}{'x':>8}"],
    )
    for name, base in first.items():
        for found in plans:
            program = next(one for one in found["programs"] if one["name"] == name)
            sent, base_sent = (sum(one["collectives"].values()) for one in (program, base))
            row = {"program": name, "topology": found["topology"]}
            row |= {"flops": program["flops"], "bytes": program["bytes"], "sent": sent}
            row |= {"collectives": program["collectives"]}
            ratios = [a / b if b else 1.0 for a, b in ((row["flops"], base["flops"]), (row["bytes"], base["bytes"]))]
            ratios.append(sent / base_sent if base_sent else 1.0)
            rows.append(row | dict(zip(("flops_ratio", "bytes_ratio", "sent_ratio"), ratios, strict=True)))
            lines.append(
                f"{name:<18}{found['topology']:>12}{row['flops'] / 1e12:>12.3f}{ratios[0]:>8.3f}"
                f"{row['bytes'] / 1e9:>12.1f}{ratios[1]:>8.3f}{sent / 1e9:>12.2f}{ratios[2]:>8.3f}"
            )
    return rows, "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/qwen3_8b.py")
    parser.add_argument("--topologies", default="v5p:2x2x4,v5p:4x4x4,v5p:4x8x8")
    parser.add_argument("--workdir", default="runs/weak_scaling", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    topologies = given.topologies.split(",")
    questions = config_lib.load(REPOSITORY / given.config).questions_per_iteration
    plans = []
    for topology in topologies:
        share, rest = divmod(questions * chips(topology), chips(topologies[0]))
        if rest:
            sys.exit(f"{topology} gives no whole number of questions; take slices that are multiples of the first.")
        plans.append(plan(given.config, topology, share, given.workdir))
    rows, table = compare(plans)
    print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    most = max(row["flops"] for row in rows)
    apart = max(abs(row["flops_ratio"] - 1) for row in rows if row["flops"] > COMPUTES * most)
    print(f"FLOPs a chip stay within {apart:.2%} (target: {WITHIN:.0%}).")
    sys.exit(apart > WITHIN)


if __name__ == "__main__":
    main()
