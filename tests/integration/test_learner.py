"""Whole runs: their learning rates, updates that are not finite, and optimisers that a run resumes with."""

import json

import numpy as np
import pytest
import tiny_run
from tiny_run import lines, metrics, run

from cgrpo_jax import train
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import build_model, cli, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import processes
from cgrpo_jax.training import learner

SHORT = {"data.num_eval": 0, "optimizer.updates_per_batch": 2, "refine.kind": "none"}


def spoil(monkeypatch, *updates):
    """Makes the gradient infinite in these updates of the runs that follow, counted from 0."""
    apply, done = learner.train_step_lib.update, []

    def spoiled(state, rows, **keywords):
        if len(done) in updates:
            rows[0] = rows[0].replace(advantage=np.inf, old_logp=np.full_like(rows[0].old_logp, np.nan))
        done.append(len(rows))
        return apply(state, rows, **keywords)

    monkeypatch.setattr(learner.train_step_lib, "update", spoiled)


def arrays(workdir, changes):
    return tiny_run.state(workdir, tiny_run.config({"model.init": tiny_run.start()} | changes))


def assert_same(one, other):
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_skipped_update_is_counted_and_the_rate_is_of_those_applied(tmp_path, monkeypatch):
    """Of 6 updates the third is skipped; from 2e-4 the rate falls by a sixth an update that is applied."""
    tiny_run.start()  # whose warm start is none of the runs that follow
    spoil(monkeypatch, 2)
    rows = metrics(run(tmp_path, SHORT, num_iterations=3, **{"optimizer.schedule": "linear"}))
    assert [row["skipped_updates"] for row in rows] == [0, 1, 0]
    assert [row["learning_rate"] for row in rows] == pytest.approx([2e-4 * share / 6 for share in (5, 4, 2)])
    assert all(np.isfinite(row["grad_norm"]) and np.isfinite(row["loss"]) for row in rows)
    assert rows[1]["rows_trained"] <= 8 < 16  # of one update
    assert json.loads((tmp_path / "summary.json").read_text())["updates"] == 5
    assert not (tmp_path / "nonfinite_rows.jsonl").exists()


def test_too_many_in_a_row_end_the_run_which_then_goes_on(tmp_path, monkeypatch, capsys):
    """Two may be skipped: the third in a row, in iteration 2, is the last; nothing has moved since iteration 0."""
    changes = SHORT | {"optimizer.max_nonfinite_updates": 2, "checkpoints.every": 100}
    one = run(tmp_path / "one", changes, num_iterations=1)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, 2, 3, 4, 5)
        with pytest.raises(UserError) as error:
            run(folder, changes, num_iterations=5)
    assert str(error.value) == (
        "the gradient was not finite in 3 updates in a row, which were skipped (optimizer.max_nonfinite_updates 2); "
        f"the last one's rows are in {folder / 'nonfinite_rows.jsonl'}. The same command resumes after iteration 3."
    )
    step, left = arrays(folder, changes)
    assert step == 3
    assert_same((step, left), arrays(one, changes))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    logged = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [row["skipped_updates"] for row in logged] == [0, 2, 1]
    assert "grad_norm" not in logged[1] and logged[1]["rows_trained"] == logged[1]["tokens_trained"] == 0

    first, *others = lines(folder / "nonfinite_rows.jsonl")
    assert len(others) == 7  # two questions of four responses
    assert first["advantage"] == "inf" and set(first["old_logp"]) == {"nan"}
    arrays_too = {"old_logp", "ref_logp", "sampler_logp", "feedback_ids"}
    others_too = {"context_ids", "target_ids", "advantage", "refined", "loss", "masked", "pair", "counted"}
    assert first.keys() == others_too | arrays_too
    for row in others:
        assert len(row["target_ids"]) == len(row["old_logp"]) > 0 and row["loss"] == "policy"
        assert all(isinstance(token, int) for token in row["context_ids"] + row["target_ids"])
        assert np.isfinite(row["advantage"]) and max(row["old_logp"]) <= 0

    # Those in a row are counted on: one more is too many again.
    with monkeypatch.context() as patch:
        spoil(patch, 0)
        with pytest.raises(UserError, match="not finite in 4 updates in a row"):
            run(folder, changes, num_iterations=5)
    assert "resuming after iteration 3" in capsys.readouterr().err
    run(folder, changes, num_iterations=5)
    assert "resuming after iteration 4" in capsys.readouterr().err
    assert [row["skipped_updates"] for row in metrics(folder)] == [0, 2, 1, 1, 0]
    with pytest.raises(AssertionError):
        assert_same(arrays(folder, changes), (step, left))


def test_none_may_be_skipped_and_another_process_writes(tmp_path, monkeypatch, capsys):
    """Every process stops with the same message; the first alone writes, which this one is not when it comes to it."""
    tiny_run.start()
    spoil(monkeypatch, 0)
    give_up = train.Run._give_up

    def as_second(self):
        with monkeypatch.context() as patch:
            patch.setattr(processes, "is_first", lambda: False)
            give_up(self)

    monkeypatch.setattr(train.Run, "_give_up", as_second)
    flags = tiny_run.arguments(
        tmp_path, SHORT, **{"model.init": tiny_run.start()}, **{"optimizer.max_nonfinite_updates": 0}
    )
    with pytest.raises(SystemExit) as stopped:
        cli.run(train.main, require=("config", "workdir"), flags={"distributed": cli.DISTRIBUTED}, argv=flags)
    assert stopped.value.code == 2
    assert "error: the gradient was not finite in 1 updates in a row" in capsys.readouterr().err
    assert not (tmp_path / "nonfinite_rows.jsonl").exists() and len(metrics(tmp_path)) == 1


def test_a_run_may_go_on_with_its_state_in_host_memory(tmp_path):
    changes = SHORT | {"optimizer.mu_dtype": "bfloat16"}
    whole = run(tmp_path / "whole", changes, num_iterations=2)
    run(tmp_path / "parted", changes, num_iterations=1)
    run(tmp_path / "parted", changes | {"optimizer.offload": True}, num_iterations=2)
    assert tiny_run.repeatable(tmp_path / "parted") == tiny_run.repeatable(whole)
    assert_same(arrays(tmp_path / "parted", changes | {"optimizer.offload": True}), arrays(whole, changes))


def test_adafactor_goes_on_on_another_mesh(tmp_path):
    changes = SHORT | {"optimizer.kind": "adafactor", "optimizer.weight_decay": 0.1}
    run(tmp_path, changes, num_iterations=1)
    _, before = arrays(tmp_path, changes)
    run(tmp_path, changes | {"mesh.tensor": 2, "engine.num_slots": 1}, num_iterations=2)
    step, after = arrays(tmp_path, changes)
    assert step == 2 and [row["skipped_updates"] for row in metrics(tmp_path)] == [0, 0]
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_a_schedule_keeps_the_number_of_iterations(tmp_path):
    run(tmp_path, SHORT, num_iterations=1, **{"optimizer.schedule": "cosine"})
    why = "but optimizer.schedule 'cosine' falls over them"
    message = rf"another config \(num_iterations: 1 -> 2, {why}\); give another --workdir"
    with pytest.raises(UserError, match=message):
        run(tmp_path, SHORT, num_iterations=2, **{"optimizer.schedule": "cosine"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer.kind": "sgd"}, "optimizer.kind 'sgd' is unknown; use one of adamw, adafactor, muon."),
        ({"optimizer.schedule": "step"}, "optimizer.schedule 'step' is unknown; use one of constant, linear, cosine."),
        ({"optimizer.mu_dtype": "float16"}, "optimizer.mu_dtype 'float16' is unknown; use one of , float32, bfloat16."),
        ({"compute.remat": "True"}, "compute.remat 'True' is unknown; use one of none, mlp, layer."),
        ({"optimizer.final_learning_rate_share": 1.5}, "optimizer.final_learning_rate_share 1.5 is not a share"),
        ({"optimizer.max_nonfinite_updates": -1}, "optimizer.max_nonfinite_updates -1 is negative"),
        (
            {"optimizer.kind": "adafactor", "optimizer.mu_dtype": "bfloat16"},
            "which optimizer 'adafactor' has not; leave it empty",
        ),
        (
            {"optimizer.schedule": "linear", "optimizer.warmup_updates": 4, "optimizer.updates_per_batch": 2},
            "none of the run's 4 updates to fall",
        ),
    ],
)
def test_what_no_run_can_have(changes, message):
    with pytest.raises(UserError, match=message):
        validate.check(tiny_run.config(changes))


def test_a_configuration_with_remat_as_it_was(tmp_path):
    old = tmp_path / "old.py"
    old.write_text(
        "from configs import base\n\ndef get_config():\n    c = base.get_config()\n    c.compute.remat = True\n"
    )
    with pytest.raises(UserError, match="old.py fails to load: .*remat") as error:
        config_lib.load(old)
    assert "\n" not in str(error.value)


def test_devices_without_host_memory_are_named(monkeypatch):
    class Device:
        def addressable_memories(self):
            return [type("Memory", (), {"kind": kind}) for kind in ("device", "unpinned_host")]

    mesh = type("Mesh", (), {"local_devices": [Device()]})
    build_model.check_offload(mesh, offload=False)
    with pytest.raises(UserError, match="needs devices with pinned_host memory, these have device, unpinned_host; set"):
        build_model.check_offload(mesh, offload=True)
