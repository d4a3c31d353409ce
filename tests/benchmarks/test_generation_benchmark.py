"""The benchmark of the generation engine: what it computes by itself, on small numbers, and a whole run of it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import planned_stages
import pytest
import report
import stages
import workloads

from cgrpo_jax.runs import base
from cgrpo_jax.runs import config as config_lib

BENCHMARKS = pathlib.Path(workloads.__file__).parent
SIZES = dict(prompts=2, generations=3, prompt_len=5, new_tokens=7)


def test_batches_take_as_long_as_their_longest_text():
    assert workloads.batched_steps([5, 1, 2, 3, 4], num_slots=2) == 5 + 3 + 4


def test_a_free_slot_takes_the_text_that_came_first():
    # Slot 0: 5, then 4. Slot 1: 1, then 2 at 1, then 3 at 3, then 1 at 6.
    assert workloads.listed_steps([5, 1, 2, 3, 4, 1], num_slots=2) == 9
    assert workloads.listed_steps([7, 2], num_slots=4) == 7


def test_all_wait_for_each_prefill():
    numbers = dict(lengths=[5, 1, 2, 3], num_slots=2, step_seconds=0.5)
    assert workloads.permitted_gain(**numbers, prefill_seconds=0, prefills=4) == 8 / 6
    assert workloads.permitted_gain(**numbers, prefill_seconds=0.25, prefills=4) == (4 + 1) / (3 + 1)


def test_lengths_are_those_that_the_workload_names():
    work = workloads.WORKLOADS["smollm2-135m"]
    drawn = workloads.lengths(work, seed=0)
    usual = [length for length in drawn if length != 256]
    assert len(drawn) == 512 and len(usual) == 512 - 26 and min(usual) == 20 and max(usual) == 60
    assert drawn == workloads.lengths(work, seed=0) != workloads.lengths(work, seed=1)
    assert workloads.batched_steps(drawn, 64) > 2.5 * workloads.listed_steps(drawn, 64)


def test_a_row_has_the_median_and_whether_it_reaches_the_target():
    row = report.row("a/b", [3.0, 1.0, 2.5], "two texts", target=2.5)
    assert row == {
        "name": "a/b", "value": 2.5, "target": 2.5, "met": True, "workload": "two texts", "unit": "",
        "spread": [1.0, 3.0],
    }  # fmt: skip
    assert report.row("a", [2.4], "", target=2.5)["met"] is False
    assert report.row("a", [2.4], "")["met"] is None
    assert "MISSED" in report.table([report.row("a", [2.4], "", target=2.5)])


@pytest.mark.parametrize(
    "written",
    [
        {"rows": [{"gen_tok_s": 1.0}], "median": {"step": 2.0, "gen_tok_s": 42.5}},
        {"args": {"json": "x"}, "summary": {"gen_tok_s": 42.5}, "raw": {"step": [1.0]}},
        {"gen_tok_s": 42.5, "older": {"gen_tok_s": 1.0}},
    ],
)
def test_a_peer_reports_in_a_file(tmp_path, written):
    source = tmp_path / "peer.json"
    source.write_text(json.dumps(written))
    assert report.peer_speed("trl", f"echo working; cp {source} {{json}}", **SIZES) == 42.5


def test_a_peer_reports_on_its_last_line_and_is_told_the_sizes():
    command = """echo working; echo '{"tok_s": {rows}{prompts}{generations}.{prompt_len}{new_tokens}}'"""
    assert report.peer_speed("trl", command, **SIZES) == 623.57


def test_a_peer_is_run_in_its_own_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    assert report.peer_speed("trl", """echo "{\\"tok_s\\": 1${PYTHONPATH}}" """, **SIZES) == 1


@pytest.mark.parametrize("command", ["echo broken; exit 3", "echo done", """echo '{"other": 1}'"""])
def test_a_peer_that_reports_nothing_ends_the_benchmark(command):
    with pytest.raises(SystemExit, match="peer trl ended with . and named no gen_tok_s"):
        report.peer_speed("trl", command, **SIZES)


def test_the_whole_program(tmp_path):
    """Every row, of a model so small that only their being there means anything."""
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [
            sys.executable, BENCHMARKS / "generation.py", "--shape=tiny", "--pairs=1", f"--json={file}",
            """--peer=trl=echo '{"tok_s": 1e-3}'""",
            "--only=throughput/4,uneven/distinct,machine/4",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # 1: a target is missed
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    uneven = [f"uneven/distinct{part}" for part in ("", "/gain", "/permitted", "/of-permitted", "/occupancy", "/trl")]
    parts = ("share", "step", "layers", "unembedding", "sampling", "products")
    assert list(rows) == [
        "throughput/4", "throughput/4/trl", *uneven, *(f"machine/4/{part}" for part in parts)
    ]  # fmt: skip
    assert rows["throughput/4/trl"]["target"] == 2.2 and rows["throughput/4/trl"]["met"]
    assert rows["uneven/distinct/trl"]["met"] and 0 < rows["uneven/distinct/occupancy"]["value"] <= 1
    assert all(name in done.stdout for name in rows) and "machine/4: 1 of 2" in done.stderr


def test_an_iteration_is_planned_by_its_share_of_refined_questions():
    config = config_lib.replaced(
        config_lib.freeze(base.get_config()),
        {"num_responses": 7, "refine.num_kept": 1, "max_response_length": 100, "critic.max_length": 20},
    )
    seconds = dict(prefill=1.0, critique_prefill=2.0, refine_prefill=3.0, decode=440.0, update=16.0, reshard=0.5)
    # A token takes 440 / (7 x 220) seconds where every response is critiqued and refined.
    all_refined = planned_stages.iteration(seconds, config, rows=7, failed=1.0)
    assert all_refined == pytest.approx(1 + 5 + 440 + 16 + 0.5)
    some = planned_stages.iteration(seconds, config, rows=7, failed=0.25)
    assert some == pytest.approx(1 + 5 / 4 + 200 + 240 / 4 + 16 * 7.25 / 8 + 0.5)
    assert planned_stages.iteration(seconds, config, rows=8, failed=0.0) == pytest.approx(1 + 200 * 8 / 7 + 16 + 0.5)


@pytest.mark.parametrize(
    "lengths, num_slots, steps",
    [
        ([[5]], 3, {False: 5 + 2 + 5, True: 5 + 2 + 5}),
        # Two slots. Question 0 fails at 4: it is critiqued until 6 and refined until 10, beside question 1.
        ([[4], [9]], 2, {False: 10, True: 9 + 2 + 4}),
        # One slot: responses first, and nothing to gain.
        ([[4], [9]], 1, {False: 4 + 9 + 2 + 4, True: 4 + 9 + 2 + 4}),
    ],
)
def test_stages_in_list_scheduling(lengths, num_slots, steps):
    work = stages.Iteration([], np.array(lengths), frozenset({0}), critique=2, framing=np.zeros(1))
    assert {barriers: stages.listed_steps(work, num_slots, barriers=barriers) for barriers in (False, True)} == steps
