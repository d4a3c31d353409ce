"""Checkpoints in a bucket: saved and restored bitwise through faults, and never half of one."""

import jax
import numpy as np
import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from checkpoint_cases import assert_bitwise, make_state
from gcsfs import retry

from cgrpo_jax.errors import UserError
from cgrpo_jax.training import checkpoint_steps
from cgrpo_jax.training.checkpoint import Checkpoints, SavedWeights, read_extra, restore_params, save_params

FOLDER = "gs://mine/run/checkpoints"


@pytest.fixture
def at_once(monkeypatch):
    """No time passes between two tries of a request."""

    async def sleep(seconds):
        pass

    monkeypatch.setattr(retry.asyncio, "sleep", sleep)


def save(*steps, **kw):
    with Checkpoints(FOLDER, **kw) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step})


def restored():
    skipped = []
    with Checkpoints(FOLDER) as checkpoints:
        found = checkpoints.restore_latest(make_state(0), on_skip=lambda step, why: skipped.append((step, why)))
    return found, skipped


@pytest.mark.parametrize("fault", [None, 503, "cut"])
def test_saved_and_restored_bitwise(bucket, at_once, fault):  # noqa: F811
    bucket.faults = lambda method, what, number: fault if number % 9 == 5 else None
    save(2, 4, 6)
    (step, state, extra), skipped = restored()
    assert (step, extra["position"], skipped) == (6, 6, [])
    assert_bitwise(state, make_state(6))
    bucket.faults = lambda method, what, number: None
    assert checkpoint_steps.find("gs://mine/run", None)[1:] == (6, [4])
    assert_bitwise(restore_params("gs://mine/run", make_state(0).params, step=4), make_state(4).params)
    assert not bucket.names("mine", "run/checkpoints/2")


def test_what_was_not_marked_is_no_checkpoint(bucket):  # noqa: F811
    """As a process leaves it that is killed at its checkpoint's last word."""
    save(4, 6)
    del bucket.buckets["mine"]["run/checkpoints/6/commit_success.txt"]
    assert checkpoint_steps.find("gs://mine/run", None)[1:] == (4, [])
    (step, _, _), skipped = restored()
    assert (step, skipped) == (4, []) and not bucket.names("mine", "run/checkpoints/6/")
    save(6)
    assert restored()[0][0] == 6


def test_a_damaged_one_is_set_aside(bucket):  # noqa: F811
    save(4, 6)
    name = max(bucket.names("mine", "run/checkpoints/6/params/"), key=lambda name: len(bucket.read("mine", name)))
    data = bytearray(bucket.read("mine", name))
    data[len(data) // 2] ^= 4
    bucket.write("mine", name, bytes(data))
    (step, state, _), ((bad, why),) = restored()
    assert (step, bad) == (4, 6) and "is not what was written" in why
    assert_bitwise(state, make_state(4))
    assert bucket.names("mine", "run/checkpoints/unreadable-6/") and not bucket.names("mine", "run/checkpoints/6/")


def test_a_bucket_that_can_not_be_read_is_no_damage(bucket, at_once):  # noqa: F811
    """Else a run would go back a checkpoint whenever the network is gone for a minute."""
    save(4, 6)
    for what in ("checkpoints/6/digests.json", "checkpoints/6/params/d/", "checkpoints/6/extra/metadata"):
        bucket.faults = lambda method, asked, number, what=what: 403 if what in asked else None
        with pytest.raises(UserError, match=f"{FOLDER} can't be read now .*; start again when it can"):
            restored()
    bucket.faults = lambda method, what, number: None
    assert restored()[0][0] == 6 and not bucket.names("mine", "run/checkpoints/unreadable")


def test_its_json_is_amended(bucket):  # noqa: F811
    save(4)
    with Checkpoints(FOLDER) as checkpoints:
        checkpoints.amend(4, {"position": 5})
    assert read_extra("gs://mine/run") == {"position": 5}


def test_weights_alone(bucket, at_once):  # noqa: F811
    params = make_state(3).params
    save_params("gs://mine/reference", params)
    assert_bitwise(restore_params("gs://mine/reference", params), params)
    with SavedWeights("gs://mine/reference") as weights:
        weights.check(params)
        name, shape = next(iter(weights.shapes.items()))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        assert np.shape(weights.read(name, here)) == shape
    bucket.faults = lambda method, what, number: 403 if "writes other/0/params" in what else None
    with pytest.raises(UserError, match="gs://mine/other can't be written"):
        save_params("gs://mine/other", params)
    bucket.faults = lambda method, what, number: None
    assert not bucket.names("mine", "other/")


def test_a_bucket_that_takes_no_more_is_one_line(bucket, at_once):  # noqa: F811
    save(4)
    bucket.faults = lambda method, what, number: 403 if " writes " in what else None
    with pytest.raises(UserError, match=f"{FOLDER} can't be written: ") as caught:
        save(6)
    assert "\n" not in str(caught.value)
    bucket.faults = lambda method, what, number: None
    assert restored()[0][0] == 4


@pytest.mark.parametrize("name, number", [("digests.json", 1), ("_CHECKPOINT_METADATA", 2), ("params", 1)])
def test_what_is_not_taken_of_a_checkpoint_is_one_line(bucket, at_once, caplog, name, number):  # noqa: F811
    """Orbax would log the same, with stack traces, from its threads."""
    asked = []

    def fault(method, what, _):
        asked.extend([what] if f"writes run/checkpoints/6/{name}" in what else [])
        return 403 if len(asked) >= number and " writes " in what else None  # and nothing from there on

    bucket.faults = fault
    with pytest.raises(UserError, match=f"{FOLDER} can't be written: "):
        save(6)
    assert len(asked) >= number
    assert not [one.msg for one in caplog.records if one.name == "absl" and one.exc_info]
