import gc
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import assert_bitwise, make_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cgrpo_jax.errors import UserError
from cgrpo_jax.training.checkpoint import Checkpoints, restore_params


def save_steps(directory, *steps):
    with Checkpoints(directory, max_to_keep=None) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step})


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_restores_into_abstract_shapes_and_another_sharding(tmp_path):
    state = make_state(1)
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    save_steps(tmp_path, 1)
    template = jax.eval_shape(lambda: make_state(0))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    wide = template.params["layers"][0]
    wide["w"] = jax.ShapeDtypeStruct(wide["w"].shape, wide["w"].dtype, sharding=rows)
    with Checkpoints(tmp_path) as checkpoints:
        _, restored, _ = checkpoints.restore_latest(template)
    assert_bitwise(restored, state)
    assert restored.params["layers"][0]["w"].sharding == rows


def test_a_frozen_model_has_no_optimiser_state(tmp_path):
    state = make_state(1).replace(opt_state=None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        _, restored, extra = checkpoints.restore_latest(state)
    assert_bitwise(restored, state)
    assert (restored.opt_state, extra) == (None, {})


def test_donating_or_changing_arrays_after_save_does_not_change_what_is_saved(tmp_path):
    state = make_state(1)
    state.params["host"] = np.arange(100_000, dtype=np.float32)
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda w: w * 0 - 1, tree), donate_argnums=0)
    unsaved = make_state(2).params
    overwrite(unsaved)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(unsaved))  # so it does take what it is given
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        state.params["host"][:] = -1
        device = {"layers": state.params["layers"], "norm": state.params["norm"]}
        # JAX donates what the save has read, and copies what it still reads: which is which depends on who is faster.
        jax.block_until_ready(overwrite(device))
        checkpoints.wait()
        _, restored, _ = checkpoints.restore_latest(expected)
    assert_bitwise(restored.params, expected.params)


def test_keeps_the_newest_and_rejects_an_old_step(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_state(step), {})
        assert checkpoints.latest_step == 6
        with pytest.raises(ValueError, match="step 6 is not above the newest checkpoint, 6"):
            checkpoints.save(6, make_state(6), {})
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(8, make_state(8), {"array": np.zeros(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    save_steps(tmp_path, 2)
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(4, make_state(4), {})
    # What a process killed while saving step 4 leaves: Orbax's temporary folder, never renamed.
    (tmp_path / "other" / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "other")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 2
        step, restored, _ = checkpoints.restore_latest(make_state(0))
        assert step == 2
        checkpoints.save(4, make_state(4), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def truncate_all(folder):
    for path in files_of(folder):
        os.truncate(path, 0)


def delete_weights(folder):
    max(files_of(folder / "params"), key=lambda path: path.stat().st_size).unlink()


def halve_weights(folder):
    path = max(files_of(folder / "params"), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def delete_optimizer(folder):
    shutil.rmtree(folder / "rest")


def delete_extra(folder):
    (folder / "extra" / "metadata").unlink()


def delete_contents(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [truncate_all, delete_weights, halve_weights, delete_optimizer, delete_extra, delete_contents]


# When one array can't be read, Orbax drops the tasks that read the others; Python reports those as they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_reported_and_set_aside(tmp_path, caplog, damage):
    save_steps(tmp_path, 2, 4, 6)
    damage(tmp_path / "6")
    skipped = []
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        step, restored, extra = checkpoints.restore_latest(
            make_state(0), on_skip=lambda bad, reason: skipped.append((bad, reason))
        )
        assert (step, extra) == (4, {"position": 4})
        assert_bitwise(restored, make_state(4))
        assert [bad for bad, _ in skipped] == [6] and skipped[0][1]
        assert "checkpoint 6 can't be read" in caplog.text and "resuming from step 4" in caplog.text
        checkpoints.save(5, make_state(5), {"position": 5})
        checkpoints.save(6, make_state(6), {"position": 6})
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, _ = checkpoints.restore_latest(make_state(0))
    assert step == 6
    assert_bitwise(restored, make_state(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "6", "unreadable-6"]
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_readable_checkpoint_is_an_error_and_nothing_is_moved(tmp_path):
    save_steps(tmp_path, 2, 4)
    truncate_all(tmp_path / "2")
    truncate_all(tmp_path / "4")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"none of the checkpoints \[4, 2\]"):
        checkpoints.restore_latest(make_state(0))
    with pytest.raises(UserError, match=r"4 can't be read .*; other steps: 2"):
        restore_params(tmp_path, make_state(0).params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]
    gc.collect()


def test_another_model_is_a_users_mistake_not_a_damaged_checkpoint(tmp_path):
    save_steps(tmp_path, 2, 4)
    other = make_state(0)
    other.params["layers"][0]["w"] = jnp.zeros((8, 32))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"layers.0.w is float32\[64, 32\] in checkpoint .*4 but float32\[8, 32\]"):
            checkpoints.restore_latest(other)
        half = make_state(0)
        half.params["norm"] = half.params["norm"].astype(jnp.float32)
        with pytest.raises(UserError, match=r"norm is bfloat16\[7\] in checkpoint .* but float32\[7\]"):
            checkpoints.restore_latest(half)
        with pytest.raises(UserError, match=r"opt_state.0.count is in checkpoint .* but not in the config's model"):
            checkpoints.restore_latest(make_state(0).replace(opt_state=None))


def test_restore_params_reads_only_weights_from_a_run_or_its_checkpoints(tmp_path):
    save_steps(tmp_path / "checkpoints", 2, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "rest")
    template = jax.eval_shape(lambda: make_state(0)).params
    assert_bitwise(restore_params(tmp_path, template), make_state(4).params)
    assert_bitwise(restore_params(tmp_path / "checkpoints", template, step=2), make_state(2).params)


def test_restore_params_casts_to_the_templates_dtype(tmp_path):
    save_steps(tmp_path, 2)
    template = jax.tree.map(lambda w: w.astype(jnp.bfloat16), make_state(0).params)
    expected = jax.tree.map(lambda w: w.astype(jnp.bfloat16), make_state(2).params)
    assert_bitwise(restore_params(tmp_path, template), expected)


def test_a_critic_that_a_checkpoint_does_not_have_is_one_line(tmp_path):
    save_steps(tmp_path, 2)
    with pytest.raises(UserError) as caught:
        restore_params(tmp_path, make_state(0).params, item="critic")
    assert str(caught.value) == f"checkpoint {tmp_path / '2'} has no critic: leave critic.train as the run had it."


def test_restore_params_names_what_does_not_fit(tmp_path):
    (tmp_path / "empty").mkdir()
    params = make_state(0).params
    with pytest.raises(UserError, match="nowhere does not exist"):
        restore_params(tmp_path / "nowhere", params)
    with pytest.raises(UserError, match="empty holds no checkpoint"):
        restore_params(tmp_path / "empty", params)
    save_steps(tmp_path / "run", 2, 4)
    with pytest.raises(UserError, match="no checkpoint of step 3; it has 2, 4"):
        restore_params(tmp_path / "run", params, step=3)
    with pytest.raises(UserError, match=r"layers.0.w is float32\[64, 32\] .* but float32\[16, 32\]"):
        restore_params(tmp_path / "run", make_state(0, width=16).params)
    with pytest.raises(UserError, match="bias is in the config's model but not in checkpoint"):
        restore_params(tmp_path / "run", params | {"bias": jnp.zeros(3)})
    assert list((tmp_path / "empty").iterdir()) == []
