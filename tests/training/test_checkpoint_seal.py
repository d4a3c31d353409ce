"""Damage on disk is never restored as another state; tests/benchmarks/flips.py does the same by the hundred."""

import errno
import json
import logging
import os
import re
import shutil

import jax
import pytest
from checkpoint_cases import assert_bitwise, make_state

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files
from cgrpo_jax.training import checkpoint, checkpoint_seal
from cgrpo_jax.training.checkpoint import Checkpoints, SavedWeights, read_extra, restore_params, save_params

HERE = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints 4 and 6 of a run, and 6 of another one."""
    room = tmp_path_factory.mktemp("saved")
    for name, steps in (("run", (4, 6)), ("other", (6,))):
        with Checkpoints(room / name, max_to_keep=None) as checkpoints:
            for step in steps:
                checkpoints.save(step, make_state(step + (name == "other")), {"position": step})
    return room


@pytest.fixture
def room(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def data_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_weights(room):
    path = data_file(room / "run" / "6" / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def take(name, source):
    def damage(room):
        target, given = room / "run" / "6" / name, room / source / name
        if given.is_dir():
            shutil.rmtree(target)
            shutil.copytree(given, target)
        else:
            shutil.copyfile(given, target)

    return damage


def edit_extra(room):
    path = room / "run" / "6" / "extra" / "metadata"
    path.write_text(path.read_text().replace('"position": 6', '"position": 5'))


def rename(room):
    shutil.rmtree(room / "run" / "6")
    shutil.copytree(room / "run" / "4", room / "run" / "6")


DAMAGES = {
    "a bit of the weights": (flip_weights, "is not what was written"),
    "the weights of the step before": (take("params", "run/4"), r"params/\S+ (is missing|is not what was written)"),
    "the optimiser of another run": (
        take("rest", "other/6"),
        r"rest/\S+ (is missing|is not what was written|has \d+ bytes, \d+ were written)",
    ),
    "the position of the step before": (take("extra", "run/4"), "extra/metadata is not what was written with the arr"),
    "the position of another run": (take("extra", "other/6"), "extra/metadata is not what was written with the arrays"),
    "an edited position": (edit_extra, "extra/metadata is not what was written with the arrays"),
    "the digests of another run": (take("digests.json", "other/6"), "extra/metadata is not what was written with"),
    "no digests": (lambda room: (room / "run" / "6" / "digests.json").unlink(), "digests.json is missing"),
    "no position": (
        lambda room: (room / "run/6/extra/metadata").unlink(),
        "extra/metadata can't be read: No such file",
    ),
    "another number": (rename, "it is the checkpoint of step 4"),
}


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES)
def test_the_checkpoint_before_is_taken_and_why_is_said(room, damage, said):
    damage(room)
    skipped = []
    with Checkpoints(room / "run") as checkpoints:
        step, state, extra = checkpoints.restore_latest(make_state(0), on_skip=lambda *one: skipped.append(one))
    assert (step, extra) == (4, {"position": 4})
    assert_bitwise(state, make_state(4))
    ((bad, why),) = skipped
    assert bad == 6
    assert re.search(said, why)
    assert sorted(path.name for path in (room / "run").iterdir()) == ["4", "unreadable-6"]


def test_what_the_caller_can_not_use_is_unreadable_too(room):
    def check(step, extra):
        if step == 6:
            raise checkpoint.Damaged(f"its position can't be {extra['position']}")

    with Checkpoints(room / "run") as checkpoints:
        assert checkpoints.restore_latest(make_state(0), check=check)[0] == 4


def test_weights_by_themselves(room):
    params = make_state(0).params
    flip_weights(room)
    line = r"checkpoint \S+/run/6 can't be read \(params/\S+ is not what was written\); other steps: 4"
    with pytest.raises(UserError, match=line):
        restore_params(room / "run", params)
    with SavedWeights(room / "run") as weights, pytest.raises(UserError, match=line):
        weights.read("norm", HERE)  # whose own bytes are whole
    assert_bitwise(restore_params(room / "run", params, step=4), make_state(4).params)
    assert read_extra(room / "run") == {"position": 6}
    for name in ("params", "rest", "digests.json"):  # all but the position, from another run
        take(name, "other/6")(room)
    with pytest.raises(UserError, match="extra/metadata is not what was written with the arrays"):
        restore_params(room / "run", params)
    with pytest.raises(UserError, match="extra/metadata is not what was written"):
        read_extra(room / "run")


def test_weights_that_were_saved_alone(tmp_path):
    params = make_state(3).params
    save_params(tmp_path, params)
    assert_bitwise(restore_params(tmp_path, make_state(0).params), params)
    assert read_extra(tmp_path) == {}
    path = data_file(tmp_path / "0" / "params")
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"params/\S+ is not what was written"):
        restore_params(tmp_path, make_state(0).params)
    (tmp_path / "0" / "digests.json").unlink()
    with pytest.raises(UserError, match="digests.json is missing"), SavedWeights(tmp_path):
        pass


def test_amended_values_have_a_digest_too(room):
    with Checkpoints(room / "run") as checkpoints:
        checkpoints.amend(6, {"position": 7})
        assert checkpoints.restore_latest(make_state(0))[2] == {"position": 7}
    path = room / "run" / "6" / "extra" / "metadata"
    path.write_text(path.read_text().replace("7", "8", 1))
    with pytest.raises(UserError, match="extra/metadata is not what was written"):
        read_extra(room / "run")


def test_a_checkpoint_of_an_earlier_version_is_read_unchecked_which_is_said_once(room, capsys):
    checkpoint_seal._say_unchecked.cache_clear()
    for step in (4, 6):
        (room / "run" / str(step) / "digests.json").unlink()
        (room / "run" / str(step) / "extra" / "metadata").write_text(json.dumps({"position": step}))
    with Checkpoints(room / "run") as checkpoints:
        step, state, extra = checkpoints.restore_latest(make_state(0))
        checkpoints.amend(6, {"position": 7})
    assert (step, extra) == (6, {"position": 6})
    assert_bitwise(state, make_state(6))
    assert_bitwise(restore_params(room / "run", make_state(0).params), make_state(6).params)
    assert read_extra(room / "run") == {"position": 7}
    said = capsys.readouterr().err
    assert said.count("was written by an earlier version, without digests") == 1 and said.count("\n") == 1


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, make_state(4), {})
    with caplog.at_level(logging.CRITICAL), pytest.raises(UserError, match="can't be written: the disk is full; free"):
        with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
            patch.setattr(files, "write_atomically", full)
            checkpoints.save(6, make_state(6), {})
            checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_state(0))[0] == 4
        checkpoints.save(6, make_state(6), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]


def test_what_a_killed_run_had_begun_to_remove_is_removed(room):
    with Checkpoints(room / "run", max_to_keep=None) as checkpoints:
        for step in (8, 10):
            checkpoints.save(step, make_state(step), {})
    shutil.rmtree(room / "run" / "6" / "params")
    with Checkpoints(room / "run", max_to_keep=2) as checkpoints:
        checkpoints.keep(4)  # the best one
        assert checkpoints.restore_latest(make_state(0))[0] == 10
        checkpoints.tidy()
    assert sorted(path.name for path in (room / "run").iterdir()) == ["10", "4", "8"]
