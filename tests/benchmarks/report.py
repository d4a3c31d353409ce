"""Rows of a benchmark's report, and what the programs that it is compared with report of themselves."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence


def row(
    name: str,
    values: Sequence[float],
    workload: str,
    *,
    unit: str = "",
    target: float | None = None,
    most: bool = False,
) -> dict:
    """Returns a row of the report: the median of what was measured, and whether it reaches its target, or stays in it.

    Args:
      name, values, workload, unit, target: of what was measured.
      most: the target is the most that it may be, not the least.
    """
    value = float(statistics.median(values))
    met = None if target is None else bool(value <= target if most else value >= target)  # not NumPy's, for JSON
    spread = [float(min(values)), float(max(values))]
    return dict(name=name, value=value, target=target, met=met, workload=workload, unit=unit, spread=spread)


def missing(name: str, why: str, *, target: float | None = None) -> dict:
    """Returns a row in the place of one that could not be measured; its target, where it has one, is missed."""
    met = None if target is None else False
    return dict(name=name, value=None, target=target, met=met, workload=why, unit="", spread=[None, None])


def table(rows: Sequence[dict]) -> str:
    """Returns the rows as text."""
    lines = [f"{'':<34}{'median':>10}{'least':>10}{'greatest':>10}{'target':>9}  {'':<7}"]
    for one in rows:
        values = (one["value"], *one["spread"])
        numbers = "".join(f"{'-':>10}" if value is None else f"{value:>10.4g}" for value in values)
        target = "" if one["target"] is None else f"{one['target']:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[one["met"]]
        lines.append(f"{one['name']:<34}{numbers}{target:>9}  {verdict:<7}{one['unit']:<6} {one['workload']}")
    return "\n".join(lines)


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def find(found, key: str):
    """Returns the value of a key in nested objects, that of the outermost; None where there is none."""
    if not isinstance(found, dict) or key in found:
        return found[key] if isinstance(found, dict) else None
    inner = (find(value, key) for value in found.values())
    return next((value for value in inner if value is not None), None)


def peer_speed(name: str, command: str, **sizes: int) -> float:
    """Runs a peer's command and returns the tokens that it generates in a second; arguments as of `ask`."""
    (speed,) = ask(name, command, (("gen_tok_s", "tok_s"),), **sizes)
    progress(f"{name}: {speed:.1f} tok/s")
    return speed


def peer_step(name: str, command: str, **sizes: int) -> tuple[float, float]:
    """Runs a peer's command and returns the seconds of a step and the most GiB that it held; arguments as of `ask`."""
    seconds, held = ask(name, command, (("median_step_s", "step"), ("ru_maxrss_gib", "peak_rss_gb")), **sizes)
    progress(f"{name}: {seconds:.2f} s a step, {held:.2f} GiB")
    return seconds, held


def ask(
    name: str,
    command: str,
    wanted: Sequence[Sequence[str]],
    *,
    prompts: int,
    generations: int,
    prompt_len: int,
    new_tokens: int,
) -> list[float]:
    """Runs a peer's command and returns the numbers that it reports.

    They are read from its JSON file, at any depth of objects, or from a JSON object on its last line.

    Args:
      name, command: of the peer; in the command {rows}, {json} and the sizes are filled in.
      wanted: of each number, the names that it may have; the first that is found counts.
      prompts, generations, prompt_len, new_tokens: what it is to compute.

    Raises:
      SystemExit: it fails, or a number is missing or 0.
    """
    sizes = dict(prompts=prompts, generations=generations, prompt_len=prompt_len, new_tokens=new_tokens)
    progress(f"{name}: {prompts} x {generations} rows, {prompt_len} + {new_tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "peer.json"
        for key, value in (sizes | {"rows": prompts * generations, "json": file}).items():
            command = command.replace("{" + key + "}", str(value))
        # This program's path is not the peer's.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
        said: dict = {}
        if done.returncode == 0 and file.is_file():
            said = json.loads(file.read_text(encoding="utf-8"))
        elif done.returncode == 0 and (lines := done.stdout.split("\n")[:-1]) and lines[-1].startswith("{"):
            said = json.loads(lines[-1])
    found = [next((value for value in (find(said, key) for key in keys) if value), None) for keys in wanted]
    for keys, value in zip(wanted, found, strict=True):
        if not value:
            told = (done.stdout + done.stderr)[-2000:]
            sys.exit(f"{told}\npeer {name} ended with {done.returncode} and named no {' or '.join(keys)}: {command}")
    return [float(value) for value in found]
