"""The benchmark of `collect` against its engine: what it checks of its own measurements, and a whole run of it."""

import json
import os
import pathlib
import subprocess
import sys

import collect_speed
import made_model
import numpy as np
import pytest
import workloads
from collect_speed import Measured, Part

from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import RowIndex

BENCHMARKS = pathlib.Path(workloads.__file__).parent
WORK = workloads.COLLECTIONS["tiny"]


def measured(seconds, *, tokens=120, stepping=0.0, **more):
    return Measured(seconds=seconds, stepping=stepping, steps=4, tokens=tokens, **more)


def test_a_rate_is_compared_with_that_of_its_neighbour():
    collected = [measured(2.0, stepping=1.9), measured(4.0, stepping=3.8), measured(2.0, stepping=1.98)]
    alone = [measured(1.0), measured(3.96), measured(1.96)]
    found = collect_speed.rows_of(WORK, collected, alone, alone)
    rows = {row["name"]: row for row in found}
    assert rows["collect"]["value"] == 60 and rows["collect"]["spread"] == [30, 60]
    assert rows["collect/engine"]["value"] == pytest.approx(0.98) and rows["collect/engine"]["met"]
    assert rows["collect/engine"]["spread"] == pytest.approx([0.5, 0.99])
    assert rows["collect/outside"]["value"] == pytest.approx(0.05) and rows["collect/outside"]["met"] is False
    assert rows["collect/step"]["spread"] == pytest.approx([0.475, 0.95])


@pytest.mark.parametrize(
    "alone, said",
    [
        (measured(1.0, tokens=121), r"differ in tokens and steps: \[\(120, 4\), \(121, 4\)\]"),
        (measured(1.0, compiled=2), "2 programs were compiled while it was measured"),
    ],
)
def test_measurements_of_other_work_are_refused(alone, said):
    with pytest.raises(SystemExit, match=said):
        collect_speed._check([measured(1.0)], [alone], [measured(1.0)])


def test_all_requests_at_once_keep_their_order():
    requests = [Request(np.ones(3, np.int32), [RowIndex(question=q)], 4) for q in range(4)]
    parts = [Part({"seed": 0}, [requests[:2], [], [requests[2]]]), Part({"seed": 0}, [[requests[3]]])]
    (queue,) = collect_speed.at_once(parts)
    assert queue.arguments == {"seed": 0} and queue.steps == [requests]


def test_a_made_up_tokenizer_has_as_many_ids_and_ends_as_was_asked(tmp_path):
    tokenizer = load_tokenizer(made_model.write_tokenizer(tmp_path, 512, end_share=1 / 8))
    assert tokenizer.vocab_size == 512 and len(tokenizer.eos_ids) == 64 + 1
    rng = np.random.default_rng(0)
    text = made_model.text(rng, 25)
    assert len(text.split()) == 25 and text.count("\n") == 2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(set(made_model.words(30_000))) == 30_000


def test_the_whole_program(tmp_path):
    """Every row, of a model so small that only their being there means anything."""
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "collect_speed.py", "--shape=tiny", "--pairs=1", f"--json={file}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and "1 of 1: " in done.stderr, done.stderr  # 1: a target is missed
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["collect", "collect/engine", "collect/outside", "collect/queue", "collect/step"]
    assert 0 < rows["collect/outside"]["value"] < 1 and rows["collect/engine"]["target"] == 0.97
    # Of 4 questions 2 responses, each with a critique and a refinement, of a token at least.
    tokens = int(rows["collect"]["workload"].split("; ")[1].split()[0])
    assert 24 <= tokens <= 8 * (12 + 8 + 12)
    assert all(name in done.stdout for name in rows)
