"""`evaluate` and `diagnose` on two processes write what one process writes, and go on with what one has begun."""

import os
import subprocess
import sys

import paths
import patience
import pytest
import tiny_run
import xla_flags

LOCAL_POD = paths.LOCAL_POD
CHANGES = {
    "critique.kind": "cot",
    "eval.num_samples": 2,
    "eval.k": (1, 2),
    "eval.texts_per_slot": 1,
    "engine.num_slots": 1,
}
KINDS = {"diagnosis.kinds": ("indicative_gt", "cot"), "diagnosis.num_questions": 6, "diagnosis.num_responses": 2}


def run(program, workdir, processes, *flags):
    arguments = tiny_run.arguments(workdir, {"model.init": tiny_run.start()} | CHANGES | KINDS)
    ended = subprocess.run(
        [
            "bash",
            str(LOCAL_POD),
            str(processes),
            f"--devices={2 // processes}",
            "--",
            sys.executable,
            "-m",
            f"cgrpo_jax.{program}",
            *arguments,
            *flags,
            "--distributed",
        ],
        env=os.environ
        | {"PYTHON": sys.executable, "PYTHONPATH": str(LOCAL_POD.parent.parent), "XLA_FLAGS": xla_flags.flags()},
        capture_output=True,
        text=True,
        timeout=patience.seconds(240),
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "program, flags, folder", [("evaluate", ["--refine"], "evaluation"), ("diagnose", [], "diagnosis")]
)
def test_two_processes_write_what_one_does(tmp_path, program, flags, folder):
    one, two = tmp_path / "one" / folder, tmp_path / "two" / folder
    run(program, one.parent, 1, *flags)
    out = run(program, two.parent, 2, *flags)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir()) and "summary.json" in names
    for name in set(names) - {"about.json"}:  # which has the date
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert out.count("numbers and every") == 1
    # What one process left of the last file, two finish.
    last = one / ("samples.jsonl" if program == "evaluate" else "cot.jsonl")
    whole = last.read_text()
    last.write_text("".join(whole.splitlines(keepends=True)[:1]))
    run(program, one.parent, 2, *flags)
    assert last.read_text() == whole
