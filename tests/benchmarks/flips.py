"""Damages a checkpoint in every way that a disk or a copy can, and sees that no other state is ever restored.

    python tests/benchmarks/flips.py [--flips=N] [--share=PERCENT] [--seed=TEXT] [--json=FILE]

Two checkpoints lie in a folder. Of the newer one a single bit is flipped, drawn at random; or a
file is cut, emptied, deleted, longer, or in the place of another one, of the same checkpoint, of the one before, or of
another run's of the same step; or the whole is renamed. Then the newest state is restored, and the newer checkpoint's
weights by themselves. What may come: the one before, said to be taken since the newer can't be read; or the newer,
bitwise, where the damage is in what nothing reads. Anything else is a fault: OTHER STATE, or an exception that is none
of a user's mistake.

A case is drawn by the seed and its number among the files that there are, named anew by Orbax. With `--json`, results
are written after every 25 cases, and those that a file holds of the same modules are gone on with. It ends with 1 where
there is a fault.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import logging
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import TrainState
from cgrpo_jax.training import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLIPS, PART = 500, 25
BEFORE, NEWEST = 4, 6  # steps
BEFORE_TAKEN, IDENTICAL, OTHER, FAULT = "the one before", "identical", "OTHER STATE", "exception"


def state_of(seed: int) -> TrainState:
    """Returns a small state; its arrays are noise, which no compression shortens."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "layers": {"q": jax.random.normal(keys[0], (2, 24, 16)), "norm": jnp.full((2, 24), seed + 0.5, jnp.bfloat16)},
        "embed": jax.random.normal(keys[1], (40, 24)),
    }
    return TrainState(step=jnp.int32(seed), params=params, opt_state=optax.adamw(1e-3).init(params))


def write(folder: pathlib.Path, *states: tuple[int, int]) -> None:
    """Writes checkpoints: steps, and the seeds of their states."""
    with checkpoint.Checkpoints(folder, max_to_keep=None) as checkpoints:
        for step, seed in states:
            checkpoints.save(step, state_of(seed), {"iteration": step, "num_tokens": 100 * step, "best": None})


def same(a, b) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- cases ------------------------------------------------------------------------------------------------------------

Damage = Callable[[pathlib.Path], None]  # of the folder of the newer checkpoint


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flip(name: str, bit: int) -> Damage:
    def damage(newest: pathlib.Path) -> None:
        data = bytearray((newest / name).read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        (newest / name).write_bytes(data)

    return damage


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda newest: (newest / name).write_bytes(change((newest / name).read_bytes())) and None


def swap(one: str, other: str) -> Damage:
    def damage(newest: pathlib.Path) -> None:
        a, b = (newest / one).read_bytes(), (newest / other).read_bytes()
        (newest / one).write_bytes(b)
        (newest / other).write_bytes(a)

    return damage


def replaced(name: str, source: pathlib.Path) -> Damage:
    """Puts a file, or an item, of another checkpoint in the place of this one's."""

    def damage(newest: pathlib.Path) -> None:
        target = newest / name
        if (source / name).is_dir():
            shutil.rmtree(target)
            shutil.copytree(source / name, target)
        else:
            shutil.copyfile(source / name, target)

    return damage


def flips(newest: pathlib.Path, seed: str, count: int) -> Iterator[tuple[str, Damage]]:
    """Single bits: half in a file drawn by its size, half in any file."""
    sizes = {name: (newest / name).stat().st_size for name in files_in(newest)}
    names = [name for name, size in sizes.items() if size]
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        weights = [sizes[name] for name in names] if number % 2 else None
        (name,) = rng.choices(names, weights)
        yield f"flip {number}", flip(name, rng.randrange(8 * sizes[name]))


def others(newest: pathlib.Path, before: pathlib.Path, twin: pathlib.Path) -> Iterator[tuple[str, Damage]]:
    """Each file cut, emptied, deleted, longer and exchanged; items and whole checkpoints of another step or run."""
    names = files_in(newest)
    for number, name in enumerate(names):
        yield f"cut {name}", rewrite(name, lambda data: data[: len(data) // 2])
        yield f"emptied {name}", rewrite(name, lambda data: b"")
        yield f"longer {name}", rewrite(name, lambda data: data + b"\0")
        yield f"deleted {name}", lambda newest, name=name: (newest / name).unlink()
        yield f"exchanged {name}", swap(name, names[(number + 1) % len(names)])
    for kind, source in (("of the step before", before), ("of another run", twin)):
        for name in (*sorted(path.name for path in source.iterdir()), *files_in(source)):
            if (newest / name).exists():
                yield f"{kind} {name}", replaced(name, source)
        yield f"{kind} all arrays", _several(source, "params", "rest", "digests.json")
    yield "another step's whole folder", lambda newest: _replace(newest, before)


def _several(source: pathlib.Path, *names: str) -> Damage:
    def damage(newest: pathlib.Path) -> None:
        for name in names:
            replaced(name, source)(newest)

    return damage


def _replace(newest: pathlib.Path, source: pathlib.Path) -> None:
    shutil.rmtree(newest)
    shutil.copytree(source, newest)


# --- one case ---------------------------------------------------------------------------------------------------------


def outcome(folder: pathlib.Path) -> str:
    """Restores what a folder holds, in every way that it is read; returns what came."""
    template = jax.eval_shape(lambda: state_of(0))
    weights = _weights(folder, template)
    if weights not in (BEFORE_TAKEN, IDENTICAL):
        return weights
    skipped: list[int] = []
    try:
        with checkpoint.Checkpoints(folder) as checkpoints:
            found = checkpoints.restore_latest(template, on_skip=lambda bad, why: skipped.append(bad))
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{FAULT}: {type(error).__name__}: {error}"
    if found is None:
        return OTHER
    step, state, extra = found
    if extra.get("iteration") != step or not same(state, state_of(step)):
        return OTHER
    if step == NEWEST:
        return IDENTICAL
    return BEFORE_TAKEN if skipped == [NEWEST] else f"{FAULT}: the one before, and nothing was said"


def _weights(folder: pathlib.Path, template: TrainState) -> str:
    """The weights, and the JSON values, by themselves: those that were written, or a line that says what is wrong."""
    try:
        if not same(checkpoint.restore_params(folder, template.params, step=NEWEST), state_of(NEWEST).params):
            return OTHER
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with checkpoint.SavedWeights(folder, step=NEWEST) as saved:
            if not same(saved.read("embed", here), state_of(NEWEST).params["embed"]):
                return OTHER
        if checkpoint.read_extra(folder, step=NEWEST)["iteration"] != NEWEST:
            return OTHER
    except UserError:
        return BEFORE_TAKEN
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{FAULT}: {type(error).__name__}: {error}"
    return IDENTICAL


def kind_of(name: str) -> str:
    return " ".join(name.split()[:1]) if not name.startswith(("of ", "another")) else name.rpartition(" ")[0]


def modules_text() -> str:
    """Returns a hash of all that writes and reads a checkpoint."""
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for path in sorted((ROOT / "cgrpo_jax").rglob("*.py")):
        if path.parent.name in ("training", "runtime"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keeps what is said of each damage, and what libraries say, from the screen."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryFile("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
    logging.disable(logging.NOTSET)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flips", type=int, default=FLIPS, help="single bits")
    parser.add_argument("--share", type=float, default=100.0, help="percent of all cases")
    parser.add_argument("--seed", default="0", help="by which they are drawn")
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    options = parser.parse_args(argv)
    result = {"key": modules_text(), "seed": options.seed, "flips": options.flips, "share": options.share}
    result |= {"done": False, "cases": 0, "seconds": 0.0, "outcomes": {}, "faults": [], "identical": []}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        if all(kept.get(name) == result[name] for name in ("key", "seed", "flips", "share")):
            result = kept
    counts = collections.Counter(
        {(kind, what): n for kind, row in result["outcomes"].items() for what, n in row.items()}
    )

    def keep() -> None:
        kinds = sorted({kind for kind, _ in counts})
        result["outcomes"] = {
            kind: {what: n for (of, what), n in sorted(counts.items()) if of == kind} for kind in kinds
        }
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as name, silent():
        room = pathlib.Path(name)
        whole, twin = room / "whole", room / "twin"
        write(whole, (BEFORE, BEFORE), (NEWEST, NEWEST))
        write(twin, (NEWEST, 77))
        newest = whole / str(NEWEST)
        cases = [*flips(newest, options.seed, options.flips), *others(newest, whole / str(BEFORE), twin / str(NEWEST))]
        if options.share < 100:
            cases = random.Random(options.seed).sample(cases, round(len(cases) * options.share / 100))
        for case, damage in [] if result["done"] else cases[result["cases"] :]:
            began = time.monotonic()
            shutil.rmtree(room / "case", ignore_errors=True)
            shutil.copytree(whole, room / "case")
            damage(room / "case" / str(NEWEST))
            came = outcome(room / "case")
            if came not in (BEFORE_TAKEN, IDENTICAL):
                result["faults"].append({"case": case, "fault": came[:300]})
            elif came == IDENTICAL:
                result["identical"].append(case)
            counts[kind_of(case), came.partition(":")[0]] += 1
            result["cases"] += 1
            result["seconds"] = round(result["seconds"] + time.monotonic() - began, 1)
            if result["cases"] % PART == 0:
                keep()
        result["done"] = True
        keep()
    for kind, row in result["outcomes"].items():
        print(f"{kind}: " + ", ".join(f"{n} {what}" for what, n in row.items()))
    for fault in result["faults"]:
        print(f"  {fault['case']}: {fault['fault']}")
    print(f"{result['cases']} cases, {len(result['faults'])} faults, {result['seconds']} s", flush=True)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
