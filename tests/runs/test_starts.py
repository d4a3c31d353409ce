import json
import subprocess
import types

import numpy as np
import pytest

from cgrpo_jax.runs import starts
from cgrpo_jax.runs.run_dir import RunDir


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit."""

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    return tmp_path


def test_starts_are_kept_in_their_order(tmp_path):
    run = RunDir(tmp_path)
    devices = np.array([types.SimpleNamespace(device_kind="TPU v5 lite")] * 8).reshape(4, 2)
    for _ in range(2):
        starts.write(run, starts.of_now("train", devices))
    first, second = starts.read(tmp_path)
    assert first.devices == second.devices == "8 x TPU v5 lite" and first.time <= second.time and first.version


def test_what_can_not_be_read_is_left_out(tmp_path):
    assert starts.read(tmp_path) == []
    lines = [json.dumps({"command": "cgrpo train", "other": 1}), "[1]", '{"command": "cg']
    (tmp_path / "starts.jsonl").write_text("\n".join(lines))
    assert starts.read(tmp_path) == [starts.Start(command="cgrpo train")]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/x/cgrpo_jax/train.py", "cgrpo train '--workdir=a b'"),
        ("/x/bin/cgrpo train", "cgrpo train '--workdir=a b'"),
        ("/x/bin/pytest", ""),
    ],
)
def test_a_command_is_as_it_is_typed_again(monkeypatch, program, said):
    monkeypatch.setattr("sys.argv", [program, "--workdir=a b"])
    assert starts.command_line("train") == said


def test_a_commit_is_marked_where_files_differ_from_it(repository):
    clean = starts.commit(repository)
    assert len(clean) >= 7 and int(clean, 16) >= 0
    (repository / "file").write_text("b")
    assert starts.commit(repository) == f"{clean}+"
    (repository / "environment").mkdir()
    assert starts.commit(repository / "environment") == ""  # which only lies in a repository
