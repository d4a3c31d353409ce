"""What decoding moves to and from a chip's HBM a token, beside what it cannot but read: no TPU is needed.

    python tests/benchmarks/decode_bytes.py [--config=FILE] [--topology=NAME] [--slots=8,16] [--json=FILE]

Compiles the tick of the engine as training calls it, for each number of slots, and counts in the compiled program what
it moves where all slots are half full. A token must read all weights, but for single rows of the embedding, and the
half of the cache that is in use. Targets: at most 1.25 times that, and at most 5 % of the cache in temporaries. Exits
with 1 where one is not met. Takes a minute.
"""

import argparse
import json
import math
import pathlib
import sys

from cgrpo_jax.inference import kv_cache
from cgrpo_jax.planning import costs, planner, programs
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.variants import Variants

MOVED, TEMPORARIES = 1.25, 0.05


def measure(config: str, topology: str, num_slots: int) -> list[dict]:
    """Returns the measurements of one number of slots, each with its target if it has one."""
    c = config_lib.load(config)
    c.engine.num_slots = num_slots or c.engine.num_slots
    planned = planner.Planner(Variants(config_lib.freeze(c)), topology).programs
    call = next(one for one in planned.calls if one.name == "decode")
    weights, state = call.args[:2]
    tokens, blocks = call.trips
    half = math.ceil(blocks / 2)
    program = costs.compile_for(
        call.function, call.args, call.keywords, kernel_cost=planner.kernel_cost, unknown_trips=(tokens, half),
        count_moved=True,
    )  # fmt: skip
    if not program.fits:
        sys.exit(f"{c.engine.num_slots} slots need {program.needed_bytes / 2**30:.2f} GiB, more than {topology} has.")
    read = {name: leaf for name, leaf in weights.items() if name != "embed" or "unembed" not in weights}
    cache = programs.Buffer("kv_cache", state.cache).bytes
    room = kv_cache.cache_length(call.keywords["settings"].length, split=False)
    must = programs.Buffer("weights", read).bytes + cache * min(half * kv_cache.READ_STACKED, room) / room
    moved = program.moved_bytes / tokens
    workload = f"{config}, {topology}, {c.engine.num_slots} slots of {room} tokens, half full"
    found = [
        ("decode_bytes_per_token", moved, None),
        ("decode_bytes_per_token_needed", must, None),
        ("decode_bytes_over_needed", moved / must, MOVED),
        ("decode_temporaries_over_cache", program.memory.temporary / cache, TEMPORARIES),
    ]
    return [
        {"name": name, "value": value, "target": target, "met": target is None or value <= target, "workload": workload}
        for name, value, target in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/qwen3_8b.py")
    parser.add_argument("--topology", default="v6e:4x4")
    parser.add_argument("--slots", default="0", help="numbers of slots; 0: that of the configuration")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    found = [one for slots in given.slots.split(",") for one in measure(given.config, given.topology, int(slots))]
    for one in found:
        target = "" if one["target"] is None else f"target {one['target']}: {'met' if one['met'] else 'NOT met'}"
        value = f"{one['value']:.4f}" if one["target"] else f"{one['value'] / 1e9:.3f} GB"
        print(f"{one['name']:<32}{value:>12}  {target:<22}{one['workload']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(one["met"] for one in found))


if __name__ == "__main__":
    main()
