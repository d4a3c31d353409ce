"""Whole runs that train adapters: what they change, keep and resume from, and which weights write."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import entry_points
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
from interrupted_runs import KILLED, Crash, assert_same_run, crash, interrupt
from refusals import contents, corrupt, refused
from tiny_run import metrics, run

from cgrpo_jax import sample, train
from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.training import optimizer
from cgrpo_jax.training.checkpoint import SavedWeights, restore_params

TARGETS = ("q", "o", "down")
LORA = {"lora.rank": 4, "lora.alpha": 8.0, "lora.targets": TARGETS, "optimizer.learning_rate": 3e-3, "data.num_eval": 4}
# The base is no other folder's weights but a warm start's result, so it must come back from the run's own folder.
WARM = LORA | {
    "warm_start.num_updates": 2,
    "checkpoints.every": 2,
    "objective.scale_by_std": True,
    "objective.aggregate": "sequence_mean",
}
LENGTH = 3
SHAPES = {  # [L, *inputs, rank] and [L, rank, *outputs]; width 64, 2 heads of 32, 128 in the MLP
    "layers.q_lora_a": (1, 64, 4),
    "layers.q_lora_b": (1, 4, 2, 32),
    "layers.o_lora_a": (1, 2, 32, 4),
    "layers.o_lora_b": (1, 4, 64),
    "layers.down_lora_a": (1, 128, 4),
    "layers.down_lora_b": (1, 4, 64),
}


@pytest.fixture(scope="module", params=[0.0, 0.05], ids=["no reference", "reference"])
def changes(request):
    return WARM | {"objective.kl_coef": request.param}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, changes):
    return run(tmp_path_factory.mktemp("whole"), changes, num_iterations=LENGTH)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """A finished run that keeps its base."""
    return run(tmp_path_factory.mktemp("warmed"), WARM, num_iterations=LENGTH)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A finished run whose base is another run's checkpoint."""
    return run(tmp_path_factory.mktemp("started"), LORA, num_iterations=LENGTH, **{"objective.kl_coef": 0.05})


def options(changes):
    return {"model.init": tiny_run.start(), "num_iterations": LENGTH} | changes


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def base_of(folder):
    return restore_params(folder / "base", tiny_run.template())


def merged_by_hand(base, folder):
    """Returns the base with `W + (alpha / rank) A B` in place of each adapted W, and the adapters."""
    with SavedWeights(folder) as saved:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        adapters = {name: np.asarray(saved.read(name, device)) for name in saved.shapes}
    layers = {name: np.asarray(weight) for name, weight in base["layers"].items()}
    for name in TARGETS:
        a, b = (adapters[f"layers.{name}_lora_{which}"] for which in "ab")
        layers[name] = layers[name] + 8.0 / 4 * np.tensordot(a[0], b[0], axes=1)[None]
    return base | {"layers": layers}, adapters


def stacked(params):
    """Returns the layers as training has them: generation on a CPU has one dict a layer."""
    return jax.tree.map(lambda *parts: np.stack(parts), *params["layers"])


def assert_same_weights(actual, expected, **tolerance):
    actual, expected = names(actual), names(expected)
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        np.testing.assert_allclose(array, expected[name], err_msg=name, **tolerance)


def assert_evaluates_as_it_ended(folder, flags):
    """In one part, so that texts, and with them all numbers, are training's own (entry_points.ONE_PART)."""
    entry_points.run_evaluate(folder, flags | entry_points.ONE_PART)
    numbers, summary = entry_points.evaluated(folder / "evaluation")
    assert numbers == json.loads((folder / "summary.json").read_text())["eval_after"]
    assert summary["mean"]["questions"] == flags["data.num_eval"] == 4


# --- what is trained, what is kept --------------------------------------------------------------------------------


def test_checkpoints_hold_adapters_and_their_optimiser_state(warmed):
    for step in ("2", "3"):
        with SavedWeights(warmed, step=int(step)) as saved:
            assert saved.shapes == SHAPES
        rest = ocp.PyTreeCheckpointHandler().metadata(warmed / "checkpoints" / step / "rest").tree
        moments = {name: tuple(leaf.shape) for name, leaf in rest.items() if len(leaf.shape)}
        suffixes = sorted(re.sub(r".*\.(mu|nu)\.", r"\1.", name) for name in moments)
        assert suffixes == sorted(f"{which}.{name}" for which in ("mu", "nu") for name in SHAPES)
        assert all(shape == SHAPES[re.sub(r".*\.(mu|nu)\.", "", name)] for name, shape in moments.items())
    with SavedWeights(warmed / "base") as base:
        assert base.shapes == {name: leaf.shape for name, leaf in names(tiny_run.template()).items()}


def test_gradients_are_those_of_the_adapters(tmp_path, monkeypatch):
    apply, seen = optimizer.apply, []

    def watch(state, grads, **kw):
        seen.append({name: np.abs(leaf).max() for name, leaf in names(grads).items()})
        return apply(state, grads, **kw)

    monkeypatch.setattr(optimizer, "apply", watch)
    folder = run(tmp_path, LORA, num_iterations=2)
    first, second = seen
    assert first.keys() == second.keys() == SHAPES.keys()
    # B is zero at first, so that A has no gradient yet.
    assert all((value > 0) == name.endswith("_b") for name, value in first.items())
    assert min(second.values()) > 0
    assert all(row["grad_norm"] > 0 for row in metrics(folder))


def test_the_base_is_the_warm_started_model_and_stays_it(tmp_path, monkeypatch):
    held, finish = [], train.Run.finish

    def watch(self):
        held.append(self.learner.base)
        finish(self)

    full = {key: value for key, value in WARM.items() if not key.startswith("lora.")}
    run(tmp_path / "full", full, num_iterations=0)
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "finish", watch)
        folder = run(tmp_path / "lora", WARM, num_iterations=LENGTH)
    start = restore_params(tmp_path / "full", tiny_run.template())
    (base,) = held
    assert_same_weights(base.params, start, rtol=0)
    assert_same_weights(base_of(folder), start, rtol=0)
    given = restore_params(tiny_run.start(), tiny_run.template())
    assert not np.array_equal(start["embed"], given["embed"])  # the warm start trains all weights
    _, adapters = merged_by_hand(start, folder)
    assert all(np.abs(array).max() > 1e-3 for array in adapters.values())


def test_the_folder_of_a_run(warmed, started):
    files = {"config.json", "date", "starts.jsonl", "metrics.jsonl", "rollouts", "summary.json", "model", "checkpoints"}
    assert {path.name for path in warmed.iterdir()} == files | {"base"}
    assert {path.name for path in (warmed / "base").iterdir() if path.name.isdigit()} == {"0"}
    assert {path.name for path in started.iterdir()} == files  # another run has the base, and the reference with it


def test_the_reference_is_the_base(started):
    first, *others = metrics(started)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert all(row["kl"] > 1e-4 for row in others)


# --- which weights write ------------------------------------------------------------------------------------------


def test_sampler_and_trainer_agree(warmed, started):
    """The sampler has `W + scale A B`, the trainer `x W + (x A) (scale B)`."""
    for folder in (warmed, started):
        differences = [row["sampling/sampling_logp_difference/mean"] for row in metrics(folder)]
        assert len(differences) == LENGTH and max(differences) < 1e-5


def test_the_trainers_log_probabilities_can_be_taken_instead(tmp_path, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    run(tmp_path, LORA, **{"objective.old_logp": "trainer", "refine.kind": "none"})
    sampled = {row.token_ids.tobytes(): row.logp for row in seen.rollouts[16:]}
    rows = [row for row in seen.updates[1] if row.target_ids.tobytes() in sampled]
    assert rows
    for row in rows:
        np.testing.assert_allclose(row.old_logp, sampled[row.target_ids.tobytes()], atol=1e-4)


def test_each_iteration_samples_from_the_newest_adapters(tmp_path, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    folder = run(tmp_path, LORA, num_iterations=LENGTH, **{"refine.kind": "none", "checkpoints.keep": 9})
    generators = list({id(generator): generator for generator in seen.generators}.values())
    assert [generator.weights_step for generator in generators] == [0, 1, 2]
    base = restore_params(tiny_run.start(), tiny_run.template())
    layers = [stacked(generator.params) for generator in generators]
    for step, generator in enumerate(generators):
        only = tmp_path / f"only-{step}"
        shutil.copytree(folder / "checkpoints" / str(step), only / str(step))
        merged, _ = merged_by_hand(base, only)
        assert_same_weights(generator.params | {"layers": layers[step]}, merged, rtol=1e-5, atol=1e-6)
    assert not np.allclose(layers[1]["q"], layers[2]["q"], atol=1e-4)


@pytest.mark.parametrize("kept", [True, False], ids=["a base of its own", "another run's base"])
def test_evaluate_and_sample_use_the_merged_weights(tmp_path, request, kept, capsys, monkeypatch):
    folder = shutil.copytree(request.getfixturevalue("warmed" if kept else "started"), tmp_path / "run")
    flags = options(WARM if kept else LORA | {"objective.kl_coef": 0.05})
    used, answer = [], benchmark.answer_on_disk

    def watch(policy, *args, **kw):
        used.append(policy.params)
        return answer(policy, *args, **kw)

    monkeypatch.setattr(benchmark, "answer_on_disk", watch)
    assert_evaluates_as_it_ended(folder, flags)
    seen = tiny_run.watch(monkeypatch)
    capsys.readouterr()
    entry_points.call(sample.main, sample.FLAGS, folder, "--question=7*8")  # by the run's own configuration
    assert entry_points.STAGES.fullmatch(capsys.readouterr().out)
    base = base_of(folder) if kept else restore_params(tiny_run.start(), tiny_run.template())
    merged, _ = merged_by_hand(base, folder)
    assert not np.allclose(merged["layers"]["q"], base["layers"]["q"], atol=1e-3)
    for params in (used[0], seen.generators[0].params):
        assert_same_weights(params | {"layers": stacked(params)}, merged, rtol=1e-5, atol=1e-6)


# --- resumption ---------------------------------------------------------------------------------------------------


def test_a_longer_second_run_goes_on_as_if_it_had_been_one(tmp_path, uninterrupted, changes):
    run(tmp_path, changes, num_iterations=1)
    base = contents(tmp_path / "base")
    run(tmp_path, changes, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted, LENGTH, changes)
    assert contents(tmp_path / "base") == base
    assert_same_weights(base_of(tmp_path), base_of(uninterrupted), rtol=0)
    assert not (tmp_path / "reference").exists()


def test_a_crash_before_the_first_checkpoint(tmp_path, uninterrupted, changes, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "_keep", 1, crash)  # the base is saved, the state is not
        run(tmp_path, changes, num_iterations=LENGTH)
    assert (tmp_path / "base").is_dir() and not any((tmp_path / "checkpoints").iterdir())
    run(tmp_path, changes, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted, LENGTH, changes)


def test_sigkill(tmp_path, uninterrupted, changes):
    """No handler runs: the third iteration is in the metrics and half a file of its rollouts is there."""
    argv = tiny_run.arguments(tmp_path, options(changes))
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run(tmp_path, changes, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted, LENGTH, changes)


def test_resuming_on_another_runs_base(tmp_path, started, monkeypatch):
    changes = LORA | {"objective.kl_coef": 0.05}
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "update", 3, crash)
        run(tmp_path, changes, num_iterations=LENGTH)
    run(tmp_path, changes, num_iterations=LENGTH)
    assert_same_run(tmp_path, started, LENGTH, changes)


def test_the_run_that_has_the_base_may_go_on(tmp_path, capsys):
    """A base is the checkpoint that was the newest when the adapters were made, not whatever is the newest now."""
    owner, folder = tmp_path / "owner", tmp_path / "run"
    keep = {"data.num_eval": 0, "checkpoints.keep": 2}
    run(owner, keep, num_iterations=1)
    changes = LORA | {"model.init": str(owner)}
    run(folder, changes, num_iterations=1)
    whole = run(tmp_path / "whole", changes, num_iterations=LENGTH)
    run(owner, keep, num_iterations=2)
    run(folder, changes, num_iterations=LENGTH)
    assert_same_run(folder, whole, LENGTH, changes)
    assert_evaluates_as_it_ended(folder, options(changes))
    run(owner, keep, num_iterations=3)
    before = contents(folder)
    assert "owner has no checkpoint of step 1; it has 2, 3" in refused(capsys, folder, options(changes))
    _, error = entry_points.refused(capsys, entry_points.run_evaluate, folder, options(changes))
    assert "owner has no checkpoint of step 1; it has 2, 3" in error
    assert contents(folder) == before


def spoil_missing(base):
    shutil.rmtree(base)
    return r"/base is missing, the weights that the adapters in .*/checkpoints belong to; restore it from a copy"


def spoil_empty(base):
    shutil.rmtree(base)
    base.mkdir()
    return r"/base holds no checkpoint"


def spoil_damaged(base):
    corrupt(base / "0")
    return r"checkpoint .*/base/0 can't be read \("


def ask(folder, changes):
    entry_points.run_sample(folder, "--question=2+2", changes=changes)


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_empty, spoil_damaged])
def test_a_base_that_is_not_there_is_never_made_up(tmp_path, warmed, spoil, capsys):
    folder = shutil.copytree(warmed, tmp_path / "run")
    message = spoil(folder / "base")
    before = contents(folder)
    assert re.search(message, refused(capsys, folder, options(WARM)))
    for call in (entry_points.run_evaluate, ask):
        out, error = entry_points.refused(capsys, call, folder, options(WARM))
        assert out == "" and re.search(message, error)
    assert contents(folder) == before


def test_a_base_that_a_stopped_run_left_is_not_taken_for_another(tmp_path, started, monkeypatch):
    """Before the first checkpoint a folder may change its configuration, here to one that keeps no base."""
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "_keep", 1, crash)
        run(tmp_path, WARM, num_iterations=LENGTH)
    changes = LORA | {"objective.kl_coef": 0.05}
    run(tmp_path, changes, num_iterations=1)
    run(tmp_path, changes, num_iterations=LENGTH)
    assert_same_run(tmp_path, started, LENGTH, changes)


# --- what a user can get wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lora.rank": 8}, "lora.rank: 4 -> 8"),
        ({"lora.rank": 0, "lora.alpha": 32.0, "lora.targets": "q,k,v,o,gate,up,down"}, "lora.rank: 4 -> 0"),
        ({"lora.alpha": 4.0}, "lora.alpha: 8.0 -> 4.0"),
        ({"lora.targets": ("q", "o")}, "lora.targets: "),
    ],
)
def test_a_resumed_run_keeps_its_adapters(warmed, capsys, change, message):
    before = contents(warmed)
    error = refused(capsys, warmed, options(WARM | change))
    assert "holds a run with another config (" in error and message in error
    assert contents(warmed) == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lora.rank": -1}, "lora.rank -1 is negative; use 0 or more"),
        ({"lora.rank": "many"}, "--config.lora.rank=many is not an int"),
        ({"lora.alpha": 0.0}, "LoRA alpha 0.0 is not above 0; use a positive one"),
        ({"lora.targets": ("q", "gates")}, "LoRA target 'gates' is unknown; use some of q, k, v, o, gate, up, down"),
        ({"lora.targets": ()}, "LoRA has no targets; use some of q, k, v"),
        ({"lora.ranks": 4}, "did you mean --config.lora.rank?"),
    ],
)
def test_values(tmp_path, capsys, change, message):
    assert message in refused(capsys, tmp_path / "run", options(LORA | change))
    assert not (tmp_path / "run").exists()


def test_adapters_alone_are_no_start(tmp_path, warmed, capsys):
    error = refused(capsys, tmp_path / "run", options({"model.init": str(warmed)}))
    assert "is in the config's model but not in checkpoint" in error
    assert not (tmp_path / "run").exists()


def test_adapters_are_not_evaluated_as_whole_weights(warmed, started, tmp_path, capsys):
    whole = {key: value for key, value in WARM.items() if not key.startswith("lora.")}
    _, error = entry_points.refused(capsys, entry_points.run_evaluate, warmed, options(whole))
    assert "are of another configuration (lora.alpha: 8.0 -> 32.0; lora.rank: 4 -> 0; lora.targets: " in error
    assert "leave --config and these keys out: the run's own configuration is read." in error
    other = LORA | {"lora.rank": 8}
    _, error = entry_points.refused(capsys, entry_points.run_evaluate, started, options(other))
    assert "are of another configuration (lora.rank: 4 -> 8); leave --config" in error
