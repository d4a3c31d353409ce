"""Does the quickstart never fail? Seeds of it, on one device and on meshes, and what it is compared with.

    python tests/benchmarks/quickstart_seeds.py --workdir=DIR [--config=configs/quickstart.py] [--seeds=0-7]
        [--devices=1,8,2x4] [--arms=critique,grpo,no_critique] [--tuning] [--json=FILE]

Of each seed and mesh a warm start is trained, and how often a refinement passes that follows a true critique is
measured on training questions, which no lesson has shown: the arm `warm`, a minute where a whole run takes several. The
other arms start from its weights: `critique`, the configuration as it is; `grpo`, with 8 responses and no refinements;
`no_critique`, refinements that see no critique. Their seconds include the warm start's. A mesh is a number of fake CPU
devices, over which the weights are cut, or FSDPxTENSOR.

`--tuning` draws what is held out, and all questions, by the seed: what is tuned is tried on seeds from 100 on, whose
questions are not those that are reported. Each run is written to --json when it ends, under the version of the task and
a hash of the settings, and not run again; runs of others are dropped. Exits with 1 where a run is out of its bounds.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from report import progress

from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFINED = 256  # training questions on which refinements are measured
ARMS = {
    "critique": {},
    "grpo": {"refine.kind": "none", "num_responses": 8},
    "no_critique": {"critique.kind": "none"},
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What must hold of every run: held-out pass@1 before and after, shares, seconds.

    Attributes:
      start: most before training, in any arm.
      unsolved: least share of the held-out questions that no sample solves before training.
      end: least after training with critiques.
      without: most after training without them.
      seconds: most on one device, warm start included, on two cores of 174 GFLOP/s.
    """

    start: float
    unsolved: float
    end: float
    without: float
    seconds: float


# By the name of the configuration. Those of the last two are what their earlier runs allow (configs/results/README.md).
BOUNDS = {
    "quickstart": Bounds(start=0.5, unsolved=0.4, end=0.9, without=0.65, seconds=300),
    "code_quickstart": Bounds(start=0.5, unsolved=0.4, end=0.9, without=0.8, seconds=300),
    "quickstart_lora": Bounds(start=0.5, unsolved=0.4, end=0.8, without=0.65, seconds=300),
}


@dataclasses.dataclass(frozen=True)
class Room:
    """Where runs are kept, and of what.

    Attributes:
      config: path of the configuration.
      workdir: of the runs' folders, and of compiled programs.
      tuning: what is held out is drawn by the seed.
    """

    config: pathlib.Path
    workdir: pathlib.Path
    tuning: bool = False

    def key(self) -> dict:
        """Returns the version of the task, and a hash of the settings: results of others are not compared.

        Of settings that are not the defaults: a key that is new and at its default changes nothing.
        """
        values, defaults = (
            config_lib.to_json(config)
            for config in (config_lib.freeze(config_lib.load(self.config)), config_lib.Config())
        )
        text = json.dumps([config_lib.differences(defaults, values), ARMS, self.tuning], sort_keys=True)
        settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        return {"config": self.config.stem, "task": task_of(values["data"]["kind"]), "settings": settings}

    def folder(self, arm: str, seed: int, devices: str) -> pathlib.Path:
        return self.workdir / self.config.stem / f"{arm}-seed{seed}-{devices}"

    def command(self, name: str, folder: pathlib.Path, changes: dict) -> list[str]:
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        return [sys.executable, "-m", f"cgrpo_jax.{name}", f"--workdir={folder}", *flags]

    def changes(self, seed: int, devices: str) -> dict:
        fsdp, _, tensor = devices.partition("x")
        held_out = {"data.seed": seed} if self.tuning else {}
        return {"seed": seed, "mesh.fsdp": int(fsdp), "mesh.tensor": int(tensor or 1), **held_out}

    def run(self, command: list[str], devices: str) -> None:
        """Runs a command with so many fake devices; raises where it fails."""
        fsdp, _, tensor = devices.partition("x")
        flags = f"--xla_force_host_platform_device_count={int(fsdp) * int(tensor or 1)}"
        env = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.workdir / "programs")}
        env = {"PYTHONPATH": str(ROOT)} | env | dict(os.environ) | {"XLA_FLAGS": flags}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

    def train(self, arm: str, seed: int, devices: str, changes: dict) -> tuple[pathlib.Path, dict]:
        """Trains, or goes on; returns the folder and its summary."""
        folder = self.folder(arm, seed, devices)
        command = self.command("train", folder, self.changes(seed, devices) | changes)
        self.run([*command, f"--config={self.config}"], devices)
        return folder, json.loads((folder / "summary.json").read_text())

    def train_warm(self, seed: int, devices: str) -> tuple[pathlib.Path, dict]:
        return self.train("warm", seed, devices, {"num_iterations": 0, "data.num_eval": 0})

    def warm(self, seed: int, devices: str) -> dict:
        """Trains a warm start; returns its seconds, and what refinements after true critiques reach.

        The measurement is of the weights, so one device does it.
        """
        folder, summary = self.train_warm(seed, devices)
        changes = {"diagnosis.kinds": "execution", "diagnosis.num_questions": REFINED, "mesh.fsdp": 1, "mesh.tensor": 1}
        self.run(self.command("diagnose", folder, changes), "1")
        found = json.loads((folder / "diagnosis" / "summary.json").read_text())
        refined = found["kinds"]["execution"]["successful_refinements"]
        return {"seconds": round(summary["seconds"], 1), "accuracy": found["accuracy"], "refined": refined}

    def arm(self, arm: str, seed: int, devices: str, warm: dict) -> dict:
        """Trains an arm from the warm start; returns its numbers."""
        start = self.folder("warm", seed, devices) / "checkpoints"
        if not start.exists():  # its numbers are kept, its folder is not: the same weights again
            self.train_warm(seed, devices)
        changes = ARMS[arm] | {"model.init": start, "warm_start.num_updates": 0}
        folder, summary = self.train(arm, seed, devices, changes)
        before, after = (summary[name]["pass@1"] for name in ("eval_before", "eval_after"))
        config = json.loads((folder / "config.json").read_text())
        numbers = {
            "start": before,
            "end": after,
            "unsolved": summary["unsolved_before"] / config["data"]["num_eval"],
            "all_failed_start": summary["all_failed_start"],
            "seconds": round(summary["seconds"] + warm["seconds"], 1),
        }
        shutil.rmtree(folder / "rollouts", ignore_errors=True)  # tens of megabytes a run
        return numbers


def faults(row: dict, bounds: Bounds) -> list[str]:
    """Returns what of a run is out of its bounds.

    Example:
      >>> faults({"arm": "grpo", "start": 0.4, "unsolved": 0.6, "end": 0.7}, BOUNDS["quickstart"])
      ['end 0.700 is above 0.65']
    """
    if row["arm"] == "warm":
        return []
    said = []

    def check(name: str, most: float | None = None, least: float | None = None) -> None:
        value = row[name]
        if most is not None and value > most:
            said.append(f"{name} {value:.3f} is above {most:g}")
        if least is not None and value < least:
            said.append(f"{name} {value:.3f} is below {least:g}")

    check("start", most=bounds.start)
    check("unsolved", least=bounds.unsolved)
    if row["arm"] == "critique":
        check("end", least=bounds.end)
    else:
        check("end", most=bounds.without)
    if row.get("devices") == "1":
        check("seconds", most=bounds.seconds)
    return said


def table(rows: Sequence[dict]) -> str:
    """Returns how many runs each arm has on each mesh, and of their numbers the least, the mean and the greatest."""
    lines = []
    for arm, devices in dict.fromkeys((row["arm"], row["devices"]) for row in rows):
        here = [row for row in rows if (row["arm"], row["devices"]) == (arm, devices)]
        cells = [f"{arm:<12} {devices:<4} {len(here)} runs"]
        for name in ("refined", "start", "unsolved", "end", "seconds"):
            values = [row[name] for row in here if name in row]
            if values:
                cells.append(f"{name} {min(values):.3f} {sum(values) / len(values):.3f} {max(values):.3f}")
        lines.append("; ".join(cells))
    return "\n".join(lines)


class Rows:
    """The runs that are done, kept in a file where one is named."""

    def __init__(self, path: pathlib.Path | None, key: dict):
        self.path, self.key, self.rows = path, key, []
        if path and path.exists():
            kept = json.loads(path.read_text())
            if all(kept.get(name) == value for name, value in key.items()):
                self.rows = kept["runs"]
            else:
                progress(f"{path} holds runs of another version or other settings, which are dropped")

    def find(self, **which) -> dict | None:
        return next((row for row in self.rows if all(row[name] == value for name, value in which.items())), None)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.rows.sort(key=lambda row: (row["arm"] == "warm", row["arm"], row["devices"], row["seed"]))
        if self.path:
            runs = ",\n".join("  " + json.dumps(row) for row in self.rows)
            head = json.dumps(self.key)[:-1]
            text = f'{head}, "runs": [\n{runs}\n]}}\n'
            partial = self.path.with_suffix(".tmp")
            partial.write_text(text)
            partial.replace(self.path)


def numbers(text: str) -> list[int]:
    """Returns the numbers of "0-2,7": 0, 1, 2 and 7."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs" / "quickstart.py")
    parser.add_argument("--seeds", type=numbers, default=numbers("0-7"), help="such as 0-7 or 0,3")
    parser.add_argument("--devices", default="1,8,2x4", help="meshes")
    parser.add_argument("--arms", default="critique", help=f"of {', '.join(ARMS)}; warm: the warm start alone")
    parser.add_argument("--tuning", action="store_true", help="draw what is held out, and all questions, by the seed")
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    options = parser.parse_args(argv)
    if options.config.stem not in BOUNDS:
        parser.error(f"--config={options.config} has no bounds here; use one of {', '.join(BOUNDS)}")
    room = Room(options.config.resolve(), options.workdir.resolve(), options.tuning)
    rows, bounds = Rows(options.json, room.key()), BOUNDS[options.config.stem]
    for devices in options.devices.split(","):
        for seed in options.seeds:
            for arm in ["warm", *(arm for arm in options.arms.split(",") if arm != "warm")]:
                which = {"arm": arm, "devices": devices, "seed": seed}
                if rows.find(**which):
                    continue
                began = time.monotonic()
                warm = rows.find(arm="warm", devices=devices, seed=seed)
                found = room.arm(arm, seed, devices, warm) if warm else room.warm(seed, devices)
                rows.add(which | found)
                progress(f"{which | found} ({time.monotonic() - began:.0f} s)")
    said = [(row, fault) for row in rows.rows for fault in faults(row, bounds)]
    print(table(rows.rows))
    for row, fault in said:
        print(f"{row['arm']}, seed {row['seed']}, devices {row['devices']}: {fault}")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
