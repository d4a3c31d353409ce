"""The benchmark of the update: what it computes by itself, on small numbers, and a whole run of it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import report
import update
import workloads

from cgrpo_jax.training import flops

BENCHMARKS = pathlib.Path(workloads.__file__).parent
SIZES = dict(prompts=2, generations=3, prompt_len=5, new_tokens=7)


@pytest.mark.parametrize(
    "written",
    [
        {"args": {"steps": 3}, "rows": [{"step": 9.0}], "median": {"step": 2.5, "ru_maxrss_gib": 1.5}},
        {"summary": {"median_step_s": 2.5, "peak_rss_gb": 1.5}, "raw": {"step": [9.0, 9.0]}},
        {"median_step_s": 2.5, "ru_maxrss_gib": 1.5, "rows": [{"step": 9.0}]},
    ],
)
def test_a_peer_reports_its_step_in_a_file(tmp_path, written):
    source = tmp_path / "peer.json"
    source.write_text(json.dumps(written))
    assert report.peer_step("trl", f"echo working; cp {source} {{json}}", **SIZES) == (2.5, 1.5)


def test_a_peer_reports_its_step_on_its_last_line():
    command = """echo '{"step": {rows}.{new_tokens}, "peak_rss_gb": {prompt_len}}'"""
    assert report.peer_step("trl", command, **SIZES) == (6.7, 5.0)


@pytest.mark.parametrize("said", ['{"step": 1}', '{"step": 0, "peak_rss_gb": 1}', "done"])
def test_a_peer_that_leaves_out_a_number_ends_the_benchmark(said):
    with pytest.raises(SystemExit, match="peer trl ended with 0 and named no (ru_maxrss_gib|median_step_s) or"):
        report.peer_step("trl", f"echo '{said}'", **SIZES)


def test_the_rows_of_an_update_are_those_of_the_shape():
    work = workloads.UPDATES["smollm2-135m"]
    rows = update.random_rows(work.config.vocab_size, work, groups=4)
    assert len(rows) == 16 and {len(row.context_ids) + len(row.target_ids) for row in rows} == {128}
    assert sum(row.advantage for row in rows) == 0 and all(row.advantage for row in rows)
    # A group's prompt is read once, and what follows it 64 tokens at a time: 63 + 4 x 64 positions.
    shape = update.shape(work, num_token_rows=4)
    assert (shape.num_token_rows, shape.pack_length, shape.num_slots) == (4, 320, 16)


def test_growth_is_that_of_one_size():
    base = workloads.UPDATES["smollm2-135m"].small
    more, groups = update.grown(base, 1, "tokens", 4)
    assert more == base and groups == 4
    deep, groups = update.grown(base, 1, "depth", 2)
    assert deep.num_layers == 2 * base.num_layers and groups == 1
    wide, _ = update.grown(base, 1, "width", 2)
    assert (wide.embed_dim, wide.mlp_dim) == (2 * base.embed_dim, 2 * base.mlp_dim)
    assert wide.num_heads * wide.head_dim == 2 * base.num_heads * base.head_dim
    assert update.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert update.exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def test_the_memory_of_the_output_layer_does_not_grow_with_the_vocabulary():
    blockwise, whole = (
        [update.output_temporaries(loss, 256, vocab, 32) for vocab in (16384, 65536)]
        for loss in (update.blockwise_loss, update.whole_loss)
    )
    assert whole[1] > 3.5 * whole[0] and blockwise[1] < 0.2 * whole[1]
    assert update.bytes_a_token(256, 65536, 32) == pytest.approx(update.bytes_a_token(256, 16384, 32), rel=0.1)


def test_the_whole_program(tmp_path):
    """Every section, of a model so small that only its rows' being there means anything."""
    file = tmp_path / "rows.json"
    peer = json.dumps({"median_step_s": 1e4, "peak_rss_gb": 1e3})
    done = subprocess.run(
        [
            sys.executable, BENCHMARKS / "update.py", "--shape=tiny", "--pairs=1", f"--json={file}",
            f"--peer=trl=echo '{peer}'", "--only=step,realistic/trl,machine,memory,growth/tokens",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # 1: a target is missed
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert list(rows) == [
        "step", "step/trl", "step/memory", "step/memory/trl", "realistic/trl",
        *(f"machine/{part}" for part in ("share", "rate", "matrix", "update", "gradients", "output")),
        *(f"memory/{part}" for part in ("output", "share", "flat", "distil", "distil_share", "distil_flat")),
        "growth/tokens", "growth/tokens/memory",
    ]  # fmt: skip
    assert rows["step/trl"]["target"] == 2.2 and rows["step/trl"]["met"]
    assert rows["step/trl"]["value"] == pytest.approx(1e4 / rows["step"]["value"])
    assert rows["step/memory/trl"]["target"] == 0.5 and rows["step/memory/trl"]["met"]
    assert rows["realistic/trl"]["target"] == 4.0 and rows["realistic/trl"]["met"]
    machine = {name: rows[f"machine/{name}"]["value"] for name in ("share", "rate", "matrix", "update")}
    assert machine["share"] == pytest.approx(machine["rate"] / machine["matrix"])
    # Two prompts of 8 tokens with two responses of 8 each: a prompt is read once, or at most once a response.
    config = workloads.UPDATES["tiny"].config
    once = flops.of_update(config, tokens=2 * (7 + 2 * 8), targets=32, pairs=2 * (28 + 2 * (8 * 7 + 36)))
    twice = flops.of_update(config, tokens=4 * 15, targets=32, pairs=4 * 120)
    assert once * 0.999 < machine["rate"] * 1e9 * machine["update"] < twice * 1.001
    assert all(name in done.stdout for name in rows) and "machine: 1 of 1" in done.stderr
