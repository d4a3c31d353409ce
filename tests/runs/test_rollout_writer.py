import threading

import iteration_cases
import pytest
import rollout_cases
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import rollout_writer
from cgrpo_jax.runs.settings import run_settings


def writer(folder, every=1):
    return rollout_writer.RolloutWriter(
        folder, every=every, grader="exact", reward_source="verifier", spell=rollout_cases.spell
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_iterations_are_written_on_a_thread_of_their_own(tmp_path, monkeypatch):
    go_on, threads, write = threading.Event(), [], rollouts.write

    def waiting(*args, **keywords):
        threads.append(threading.current_thread())
        assert go_on.wait(20)
        return write(*args, **keywords)

    monkeypatch.setattr(rollouts, "write", waiting)
    with writer(tmp_path / "rollouts") as one:
        one.put(iteration_cases.make(3))  # which does not wait
        assert names(tmp_path / "rollouts") == [] and one.bytes is None
        go_on.set()
        one.wait()
        path = tmp_path / "rollouts" / "step_00000003.parquet"
        assert one.bytes == path.stat().st_size and threads[0] is not threading.current_thread()
    rows = rollouts.read(path)
    assert len(rows) == 13 and len(rollouts.train_groups(rows)) == 3


def test_what_was_put_is_there_when_the_writer_ends(tmp_path):
    with writer(tmp_path / "rollouts") as one:
        one.put(iteration_cases.make(0))
    assert names(tmp_path / "rollouts") == ["step_00000000.parquet"]


def test_rows_that_are_of_no_iteration(tmp_path):
    with writer(tmp_path / "rows") as one:
        for number in (0, 7):
            one.put_rows(number, rollout_cases.make())
    assert names(tmp_path / "rows") == ["step_00000000.parquet", "step_00000007.parquet"]
    rows = rollouts.read(tmp_path / "rows" / "step_00000007.parquet")
    assert [row.rollout.text for row in rows] == [row.rollout.text for row in rollout_cases.make()]


def test_one_in_so_many_iterations_or_none(tmp_path):
    for every, expected in ((2, [0, 2, 4]), (0, [])):
        with writer(tmp_path / str(every), every) as one:
            for number in range(5):
                one.put(iteration_cases.make(number))
        assert names(tmp_path / str(every)) == [f"step_{number:08d}.parquet" for number in expected]


def test_bytes_are_of_the_file_before_also_in_a_run_that_resumes(tmp_path):
    def sizes(numbers):
        found = []
        with writer(tmp_path) as one:
            for number in numbers:
                one.put(iteration_cases.make(number, scored=number != 1))
                found.append(one.bytes)
        return found

    whole = sizes(range(4))
    assert whole[0] is None and whole[1] != whole[2]
    (tmp_path / "step_00000003.parquet").unlink()
    (tmp_path / "step_00000002.parquet").unlink()
    assert sizes((2, 3)) == whole[2:]


@pytest.mark.parametrize("fails", ["put", "wait"])
def test_a_disk_that_is_full_is_one_line_at_the_next_iteration(tmp_path, monkeypatch, fails):
    def full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollouts.parquet, "write_table", full)
    with writer(tmp_path / "rollouts") as one:
        one.put(iteration_cases.make(0))
        with pytest.raises(UserError, match=r"rollouts can't be written: the disk is full; free space there or give"):
            one.put(iteration_cases.make(1)) if fails == "put" else one.wait()
        one.wait()  # said once
    assert names(tmp_path / "rollouts") == []


def test_the_most_that_a_file_may_have():
    stages = run_settings(tiny_run.config(), sharding.one_device()).stages
    plain = rollout_writer.most_bytes(stages, rescore=False)
    scored = rollout_writer.most_bytes(stages, rescore=True)
    tokens = sum(one.num_tokens for one in stages.all)
    assert 6 * tokens < plain < scored == plain + 3 * tokens
