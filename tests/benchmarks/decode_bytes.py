"""What decoding moves to and from a chip's HBM a token, beside what it cannot but read: no TPU is needed.

    python tests/benchmarks/decode_bytes.py [--config=FILE] [--topology=NAME] [--slots=16,64,224] [--json=FILE]
                                            [--lengths='lognormal(mean=1500, sigma=0.8, max=6144)'] [--count]
                                            [--kind=paged|contiguous] [--gib=18]

Compiles the tick of the engine as training calls it, for each number of slots, and counts in the compiled program what
it moves, with every loop multiplied out, and the operations that it runs in a layer's body.

Without `--lengths` all slots of a contiguous cache are half full. A token must read all weights, but for single rows of
the embedding, and the half of the cache that is in use. Targets: at most 1.25 times that, and at most 5 % of the cache
in temporaries.

With `--lengths`, a distribution or a folder of rollouts, slots hold texts of such lengths after prompts of 190 tokens,
each somewhere between its first and its last token, as slots that are refilled do. What is read is what the cache
itself says (`simulation.reads_of`), and what is needed are the weights and each text's own positions. Targets: at
most 1.1 times that, and at most 40 operations in a layer's body. The share of the programs' own count that the cache's
word comes to is told too, within 2 %. `--count` compiles nothing: bytes by the cache's word alone, for any number.

With pages, `--gib` of these, the compiler counts what attention reads as nothing: it is counted page
by page as the kernel's text says (`ragged_attention.copies`).

A number of slots that does not fit is a row that says so. Exits with 1 where a target is not met. Takes minutes.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.planning import costs, planner, program_costs, programs, simulation, workload
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.variants import Variants

MOVED, TEMPORARIES = 1.25, 0.05
UNEVEN, OPERATIONS, AGREE = 1.1, 40, 0.02  # with lengths
PROMPT = 190  # tokens before a text
DRAWS = 64  # fillings of the slots


def row(name: str, value: float | None, workload: str, target: float | None = None) -> dict:
    met = target is None or (value is not None and value <= target)
    return {"name": name, "value": value, "target": target, "met": met, "workload": workload}


def planned(config: str, topology: str, num_slots: int, kind: str, gib: float) -> tuple[programs.Call, int]:
    """Returns what decodes in a run with so many slots, and how many those are."""
    c = config_lib.load(config)
    c.engine.num_slots = num_slots or c.engine.num_slots or 16
    c.cache.kind, c.cache.gib = kind, gib if kind == "paged" else 0.0
    found = planner.Planner(Variants(config_lib.freeze(c)), topology).programs
    return next(one for one in found.calls if one.name == "decode"), c.engine.num_slots


def weights_read(call: programs.Call) -> int:
    """Returns the bytes of the weights that a token reads: of an embedding that is not the unembedding, no rows."""
    weights = call.args[0]
    read = {name: leaf for name, leaf in weights.items() if name != "embed" or "unembed" not in weights}
    return programs.Buffer("weights", read).bytes


def half_full(config: str, topology: str, num_slots: int) -> Iterator[dict]:
    """Yields the measurements of one number of slots, all of them half full."""
    call, num_slots = planned(config, topology, num_slots, "contiguous", 0.0)
    state = call.args[1]
    tokens, blocks = call.trips
    half = math.ceil(blocks / 2)
    program = costs.compile_for(
        call.function, call.args, call.keywords, kernel_cost=planner.kernel_cost, unknown_trips=(tokens, half),
        count_moved=True,
    )  # fmt: skip
    room = kv_cache.cache_length(call.keywords["settings"].length, split=False)
    what = f"{config}, {topology}, {num_slots} slots of {room} tokens, half full"
    if not program.fits:
        yield row("decode_fits", None, f"{what}: {program.needed_bytes / 2**30:.2f} GiB, more than there is", 1.0)
        return
    cache = programs.Buffer("kv_cache", state.cache).bytes
    must = weights_read(call) + cache * min(half * kv_cache.READ_STACKED, room) / room
    moved = program.moved_bytes / tokens
    yield row("decode_bytes_per_token", moved, what)
    yield row("decode_bytes_per_token_needed", must, what)
    yield row("decode_bytes_over_needed", moved / must, what, MOVED)
    yield row("decode_temporaries_over_cache", program.memory.temporary / cache, what, TEMPORARIES)


def uneven(given: argparse.Namespace, num_slots: int) -> Iterator[dict]:
    """Yields the measurements of one number of slots that hold texts of uneven lengths."""
    lengths = given.lengths
    call, num_slots = planned(given.config, given.topology, num_slots, given.kind, given.gib)
    settings, cache = call.keywords["settings"], call.args[1].cache
    length, pages = settings.length, settings.pages
    room = kv_cache.cache_length(length, split=False)
    of = f"pages of {pages.size} for {num_slots} texts" if pages else f"{num_slots} slots of {room} tokens"
    what = f"{given.config}, {given.topology}, {of}, texts of {lengths}"
    length_NS = fillings(texts_of(lengths), num_slots, length)
    live_NS = np.ones_like(length_NS, bool)
    read_N = simulation.reads_of(settings)(length_NS, live_NS)
    needed_N = kv_cache.positions_needed(length_NS, live_NS)
    position = programs.Buffer("kv_cache", cache).bytes / (pages.number * pages.size if pages else num_slots * room)
    weights = weights_read(call)
    said, must = weights + position * read_N.mean(), weights + position * needed_N.mean()
    yield row("decode_bytes_by_the_cache", said, what)
    yield row("decode_bytes_needed", must, what)
    yield row("decode_bytes_over_needed", said / must, what, UNEVEN)
    yield row("decode_keys_and_values_over_needed", float(read_N.mean() / needed_N.mean()), what)
    if given.count:
        return
    try:
        counted = program_costs.CountedProgram(call.function, call.args, call.keywords, planner.kernel_cost)
    except UserError as error:
        yield row("decode_fits", None, f"{what}: {error}", 1.0)
        return
    layers = settings.config.num_layers
    if pages:
        yield from over_pages(counted, layers, what, said, [position * copied(row, pages) for row in length_NS + 1])
    else:
        yield from compiled(counted, layers, what, said, read_N / (num_slots * kv_cache.READ_STACKED))


def copied(length_S: np.ndarray, pages: Pages) -> int:
    """Returns the positions of the pages that the kernel copies for texts with a query each."""
    form = ragged_attention.form(pages.size, 2**20, kernel=True, queries=ragged_attention.ONE_QUERY_EACH)
    one_each = [1] * len(length_S)
    found = ragged_attention.copies(
        length_S.tolist(), one_each, num_queries=len(length_S), pages_each=2**20, page_size=pages.size, form=form
    )
    return pages.size * sum(1 for _ in found)


def over_pages(
    counted: program_costs.CountedProgram, layers: int, what: str, said: float, copied: list[float]
) -> Iterator[dict]:
    """Yields the bytes of the compiled program and of the pages that its kernel copies, and its operations."""
    step = counted.cost(2) - counted.cost(1)
    moved = step.bytes + float(np.mean(copied))
    yield row("decode_bytes_counted", moved, what)
    yield row("decode_bytes_cache_over_counted", abs(said / moved - 1), f"{what}: share that differs", AGREE)
    yield row("operations_in_a_layer", counted.layer_operations(layers), what, OPERATIONS)
    yield row("operations_of_a_step", step.operations, what)


def compiled(
    counted: program_costs.CountedProgram,
    num_layers: int,
    what: str,
    said: float,
    blocks_N: np.ndarray,
) -> Iterator[dict]:
    """Yields what the compiled program says of the same: bytes at each number of blocks, and operations."""
    blocks_N = np.ceil(blocks_N).astype(int)
    steps = {int(blocks): counted.cost(2, int(blocks)) - counted.cost(1, int(blocks)) for blocks in set(blocks_N)}
    moved = float(np.mean([steps[int(blocks)].bytes for blocks in blocks_N]))
    body = counted.layer_operations(num_layers)
    yield row("decode_bytes_counted", moved, what)
    yield row("decode_bytes_cache_over_counted", abs(said / moved - 1), f"{what}: share that differs", AGREE)
    yield row("operations_in_a_layer", body, what, OPERATIONS)
    yield row("operations_of_a_step", float(np.mean([steps[int(one)].operations for one in blocks_N])), what)


def texts_of(lengths: str) -> np.ndarray:
    """Returns many lengths: drawn, or those of all texts of a folder's last iteration."""
    if "(" in lengths:
        return workload.parse(lengths)(np.random.default_rng(0), 100_000)
    most = dict.fromkeys(Stage, 2**31 - 1)
    shape = workload.Shape(0, 0, 0, 0, False, most, most)
    questions, _ = workload.of_rollouts(lengths, shape)
    return np.array([n for one in questions for asked in one.all for n in asked.tokens.values()])


def fillings(texts: np.ndarray, num_slots: int, length: int) -> np.ndarray:
    """Returns `[N, S]` tokens that slots hold at N times: a text is met by its length, at any of its tokens."""
    rng = np.random.default_rng(1)
    found = rng.choice(texts, (DRAWS, num_slots), p=texts / texts.sum())
    return np.minimum(PROMPT + (rng.random(found.shape) * found).astype(int), length - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/qwen3_8b.py")
    parser.add_argument("--topology", default="v6e:4x4")
    parser.add_argument("--slots", help="numbers of slots; by default that of the configuration, or 16,64,224")
    parser.add_argument("--lengths", help="a distribution of texts' lengths, or a folder of rollouts")
    parser.add_argument("--count", action="store_true", help="with --lengths: compile nothing")
    parser.add_argument("--kind", choices=("paged", "contiguous"), default="paged", help="of the cache, with lengths")
    parser.add_argument("--gib", type=float, default=18.0, help="that pages take")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    if given.count and not given.lengths:
        parser.error("--count goes with --lengths")
    found = []
    for number in map(int, (given.slots or ("16,64,224" if given.lengths else "0")).split(",")):
        if given.lengths:
            rows = uneven(given, number)
        else:
            rows = half_full(given.config, given.topology, number)
        for one in rows:
            found.append(one)
            print(line(one), flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(one["met"] for one in found))


def line(one: dict) -> str:
    target = "" if one["target"] is None else f"target {one['target']}: {'met' if one['met'] else 'NOT met'}"
    value = "-" if one["value"] is None else f"{one['value']:.4g}"
    if one["value"] and one["value"] > 1e6:
        value = f"{one['value'] / 1e9:.3f} GB"
    return f"{one['name']:<36}{value:>12}  {target:<22}{one['workload']}"


if __name__ == "__main__":
    main()
