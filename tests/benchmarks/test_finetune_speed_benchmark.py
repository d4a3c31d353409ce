"""The benchmark of `finetune` against TRL's trainer: what it makes up and reports, and a whole run of it."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import finetune_speed
import made_model
import numpy as np
import pytest
import report
import workloads

BENCHMARKS = pathlib.Path(workloads.__file__).parent
OURS = {"seconds": 2.0, "updates": 2, "tokens": 800, "targets": 400, "positions": 1000, "loss": 10.0, "compiled": 0}
OURS |= {"peak_gib": 1.0}
PEER = OURS | {"seconds": 4.0, "loss": 10.1}


def said(measured, *, times=1.0):
    return f"echo '{json.dumps(measured | {'seconds': times * measured['seconds']})}' > {{json}}"


def test_chats_have_lengths_of_the_workload_and_are_always_the_same(tmp_path):
    work = workloads.FINETUNES["smollm2-135m"]
    files = [finetune_speed.write_chats(tmp_path / name, work).read_text() for name in ("a", "b")]
    chats = [json.loads(line)["messages"] for line in files[0].splitlines()]
    assert files[0] == files[1] and len(chats) == 128 == work.per_update * work.updates
    asked, answered = ([len(chat[turn]["content"].split()) for chat in chats] for turn in (0, 1))
    assert np.median(asked) == pytest.approx(40, rel=0.15) and np.median(answered) == pytest.approx(80, rel=0.15)
    assert max(answered) <= 200 and min(asked) < 25 and {chat[0]["role"] for chat in chats} == {"user"}


def test_a_program_is_told_the_sizes_and_runs_in_its_own_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    command = """echo "{\\"tokens\\": {per_update}{updates}, \\"seconds\\": 1${PYTHONPATH}}" > {json}"""
    found = finetune_speed.ask("trl", command, {"per_update": 3, "updates": 4}, threads=2)
    assert found == {"tokens": 34, "seconds": 1}


@pytest.mark.parametrize(
    "command, why",
    [
        ("echo working; echo 'killed: no memory' >&2; exit 3", "ended with 3: killed: no memory"),
        ("echo done", "ended with 0: done"),
    ],
)
def test_a_program_that_dies_says_why(command, why):
    assert finetune_speed.ask("trl", command, {}, threads=1) == why


def test_what_was_measured_is_kept_where_a_peer_dies_later():
    results = finetune_speed.Results()
    for name, found in (
        ("finetune", OURS),
        ("a", PEER),
        ("b", "ended with -9"),
        ("finetune", OURS | {"seconds": 1.0}),
        ("a", "took more than 9 s"),
    ):
        results.take(name, found)
    found = results.rows(["a", "b"], "two chats")
    rows = {row["name"]: row for row in found if row["value"] is not None}
    assert [row["name"] for row in found] == [
        "finetune", "finetune/fill", "finetune/memory", "finetune/a", "finetune/a", "loss/a", "finetune/b",
    ]  # fmt: skip
    assert rows["finetune"]["value"] == 600 and rows["finetune/fill"]["value"] == 0.8
    assert rows["finetune/a"]["value"] == 2 and rows["finetune/a"]["met"] is False  # beside the first run of ours
    assert rows["loss/a"]["value"] == pytest.approx(0.01) and rows["loss/a"]["met"]
    assert [row["workload"] for row in found if row["value"] is None] == ["took more than 9 s", "ended with -9"]
    assert "MISSED" in report.table(found) and "ended with -9" in report.table(found)


def test_a_peer_that_died_is_not_asked_again_and_rows_are_kept_after_every_program(tmp_path, monkeypatch):
    asked, kept, file = [], [], tmp_path / "rows.json"

    def ask(name, command, sizes, *, threads):
        kept.append([row["name"] for row in json.loads(file.read_text())] if file.exists() else [])
        asked.append((name, command, threads))
        return {"finetune": OURS, "good": PEER, "bad": "ended with 1"}[name]

    monkeypatch.setattr(finetune_speed, "ask", ask)
    monkeypatch.setattr(made_model, "write_model", lambda folder, config, *, max_context: folder)
    given = argparse.Namespace(pairs=2, threads=2, remat="none", json=file)
    work = workloads.FINETUNES["tiny"]
    rows = finetune_speed.measure(work, {"bad": "run it", "good": "run them"}, tmp_path, given)
    assert [name for name, *_ in asked] == ["finetune", "bad", "good", "finetune", "good"]
    assert asked[1][1:] == ("run it", 2) and "finetune_steps.py --remat=none --json={json}" in asked[0][1]
    assert kept[0] == [] and "finetune/bad" not in kept[1] and "finetune/bad" in kept[2] and "finetune/good" in kept[3]
    assert rows == json.loads(file.read_text()) and len(rows) == 6


def run(program, *flags):
    return subprocess.run(
        [sys.executable, BENCHMARKS / program, *map(str, flags)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
    )


def test_the_whole_program(tmp_path):
    """A peer that is slow, and one that dies."""
    file = tmp_path / "rows.json"
    peers = [f"--peer=slow={said(PEER, times=1e5)}", "--peer=dead=exit 7"]
    done = run("finetune_speed.py", "--shape=tiny", "--pairs=1", f"--json={file}", *peers)
    assert done.returncode == 1, done.stderr  # a peer died
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert list(rows) == [
        "finetune", "finetune/fill", "finetune/memory", "finetune/slow", "loss/slow", "finetune/dead",
    ]  # fmt: skip
    assert rows["finetune"]["value"] > 0 and 0.2 < rows["finetune/fill"]["value"] <= 1
    assert "0 compilations" in rows["finetune"]["workload"]
    assert rows["finetune/slow"]["met"] and rows["finetune/slow"]["target"] == 2.5
    assert rows["finetune/dead"]["met"] is False and "ended with 7" in rows["finetune/dead"]["workload"]
    # Random weights: about ln 512 = 6.24 nats, of which the peer's 10.1 are far.
    assert float(rows["loss/slow"]["workload"].split(",")[0]) == pytest.approx(np.log(512), rel=0.02)
    assert rows["loss/slow"]["met"] is False
    assert all(name in done.stdout for name in rows) and "slow: " in done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs TRL")
@pytest.mark.parametrize("mode", ["grouped", "packed"])
def test_trl_learns_the_same_chats(mode, tmp_path):
    work = workloads.FINETUNES["tiny"]
    model = made_model.write_model(tmp_path / "model", work.config, max_context=2048)
    chats, file = finetune_speed.write_chats(tmp_path / "chats.jsonl", work), tmp_path / "measured.json"
    flags = [f"--{name}={value}" for name, value in work.sizes.items() if name != "pack"]
    done = run("sft_trainer.py", f"--json={file}", f"--model={model}", f"--rows={chats}", f"--mode={mode}", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["updates"] == work.updates and found["loss"] == pytest.approx(np.log(512), rel=0.02)
    assert 0 < found["targets"] < found["tokens"] <= found["positions"]
    assert (found["tokens"] == found["positions"]) == (mode == "packed")
