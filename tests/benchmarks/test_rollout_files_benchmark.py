"""The benchmark of rollouts on disk, on small numbers."""

import sys

import pytest
import rollout_files

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.records import Stage


def test_rows_that_are_made_up_can_be_written_and_are_as_many_as_was_asked(tmp_path):
    rows = rollout_files.made_up(2, 3, 8, 5, vocab=100)
    rollouts.write(tmp_path / "a.parquet", rows, iteration=0, spell=str)
    read = rollouts.read(tmp_path / "a.parquet")
    assert [row.rollout.stage for row in read].count(Stage.RESPONSE) == 6 and len(read) == 12
    assert {len(row.rollout.token_ids) for row in read} == {5}


@pytest.mark.parametrize("seconds, status", [(1e9, 0), (1e-9, 1)])
def test_a_target_that_is_missed_is_said(seconds, status, monkeypatch, capsys):
    argv = ["rollout_files.py", "--made=2,2,8,5", "--vocab=100", f"--seconds={seconds}", "--pairs=2"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        rollout_files.main()
    assert stopped.value.code == status
    assert "cpu/made up" in capsys.readouterr().out
