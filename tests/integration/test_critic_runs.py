"""Runs in which the critic learns beside the policy: what it learns, whose weights write, how a run resumes."""

import json

import chat_tokenizer
import converted
import entry_points
import hf_folders
import jax
import numpy as np
import pytest
import tiny_run
from interrupted_runs import Crash, assert_same_run, crash, interrupt
from method_miniature import weak_model
from tiny_run import metrics, rollouts, run

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import generators
from cgrpo_jax.models import lora
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.records import Author, LossKind, Stage
from cgrpo_jax.runs import conversion
from cgrpo_jax.training import checkpoint, train_step

LENGTH = 3
NUMBER = 3  # critiques of a response
CRITIC = {
    "data.num_eval": 0,
    "critic.train": True,
    "critic.training.learning_rate": 1e-3,
    "critique.kind": "cot",
    "critique.when": "all",
    "critique.num_per_response": NUMBER,
    "refine.which": "all",
    "refine.max_pass": 1.0,
}


@pytest.fixture(scope="module")
def folder():
    """A model that criticises as the policy does at first."""
    return weak_model()


@pytest.fixture(scope="module")
def babbling(tmp_path_factory):
    """A random model of another shape and tokenizer than the policy's."""
    path = tmp_path_factory.mktemp("critic") / "model"
    settings = hf_folders.QWEN3 | {"vocab_size": 258, "max_position_embeddings": 256}
    settings |= {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12}
    hf_folders.write_folder(path, settings, {})
    shape = hf_config.read_config(path)
    hf_folders.write_folder(path, settings, hf_folders.stored_tensors(hf_folders.random_params(shape), shape))
    return chat_tokenizer.write(path, **chat_tokenizer.OTHER)


def trained_elsewhere(done, given):
    """Gives a run a newer checkpoint, whose critic is another one than the run began with; returns its state.

    Whether an iteration moves a critic hangs on what it samples; this one has surely moved.
    """
    step, state = tiny_run.restore(done, tiny_run.config({"model.init": tiny_run.start()} | given))
    rng = np.random.default_rng(3)
    own = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), state.critic.params)
    state = state.replace(critic=state.critic.replace(params=own))
    extra = checkpoint.read_extra(done / "checkpoints", step=step)
    with checkpoint.Checkpoints(done / "checkpoints") as checkpoints:
        checkpoints.save(step + 1, state, extra)
    return state


def changes(weights, folder, **more):
    own = {"critic.kind": "folder", "critic.folder": str(folder)}
    return CRITIC | {"critic.training.weights": weights} | (own if weights == "model" else {}) | more


KINDS = [("policy", "rco"), ("adapter", "policy_gradient"), ("model", "rco")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda one: "-".join(one))
def given(request, folder):
    weights, loss = request.param
    return changes(weights, folder, **{"critic.training.loss": loss})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, given):
    return run(tmp_path_factory.mktemp("whole"), given, num_iterations=LENGTH)


def test_what_each_critique_was_trained_as(whole, given):
    """All critiques of an iteration, each as its rewards say: found again from the file of rollouts alone."""
    kind = {"rco": LossKind.RCO, "policy_gradient": LossKind.POLICY}[given["critic.training.loss"]]
    for row, rows in zip(metrics(whole), rollouts(whole), strict=True):
        critiques = [one for one in rows if one.rollout.stage == Stage.CRITIQUE]
        author = Author.POLICY if given["critic.training.weights"] == "policy" else Author.CRITIC
        assert len(critiques) == 4 * 4 * NUMBER and {one.rollout.author for one in critiques} == {author}
        refinements = [one.rollout for one in rows if one.rollout.stage == Stage.REFINEMENT]
        assert len(refinements) == len(critiques) and not any(one.is_rejected for one in critiques)
        num_trained = 0
        worth = {one.parent.index: (1 + one.reward - one.parent.parent.reward) / 2 for one in refinements}
        for first in range(0, len(critiques), NUMBER):
            group = critiques[first : first + NUMBER]
            assert [one.utility for one in group] == [worth[one.rollout.index] for one in group]
            agree = [one.rollout.verdict is (one.rollout.parent.reward == 1.0) for one in group]
            rewards = np.array([one.utility + 0.5 * yes for one, yes in zip(group, agree, strict=True)])
            expected = rewards - rewards.mean()
            if kind == LossKind.RCO:
                expected = rewards / 0.1 - np.log(np.exp(rewards / 0.1).mean())
            found = [one.train_row for one in group]
            np.testing.assert_allclose([one.advantage for one in found], expected, rtol=1e-5, atol=1e-6)
            trains = len(set(rewards)) > 1  # of equal ones the targets are exactly 0
            assert {one.loss for one in found} == {kind}
            assert {one.dropped for one in group} == {"" if trains else "zero_advantage"}
            num_trained += trains * NUMBER
            for one in group:
                np.testing.assert_array_equal(one.train_row.context_ids, one.rollout.prompt_ids)
                assert one.place is None and (one.trainer_logp is not None) == trains
        assert row["critic/utility"] == pytest.approx(np.mean([one.utility for one in critiques]))
        assert 0 < row["critic/rows_trained"] == 2 * num_trained and row["critic/fallback_rate"] == 0


def test_the_policys_rows_are_what_they_were(whole):
    """Critiques are in no group of the policy's."""
    for rows in rollouts(whole):
        placed = [one for one in rows if one.place is not None]
        assert {one.rollout.stage for one in placed} <= {Stage.RESPONSE, Stage.REFINEMENT}
        assert {one.train_row.loss for one in placed} == {LossKind.POLICY}


def test_a_run_that_crashed_and_resumed_is_the_same_bitwise(tmp_path, given, whole, monkeypatch):
    """Weights, both optimisers' states, metrics, rollouts; it crashes between the policy's and the critic's update."""
    with monkeypatch.context() as patch:
        interrupt(patch, "update_critic", 2, crash)
        with pytest.raises(Crash):
            run(tmp_path, given, num_iterations=LENGTH)
    run(tmp_path, given, num_iterations=LENGTH)
    assert_same_run(tmp_path, whole, LENGTH, given)


def test_the_critic_moves_and_its_own_weights_write(tmp_path, given, monkeypatch):
    """In iteration 1 another critic writes than in iteration 0, which is the policy where it shares its weights."""
    seen = tiny_run.watch(monkeypatch)
    done = run(tmp_path, given, num_iterations=2)
    step, state = tiny_run.restore(done, tiny_run.config({"model.init": tiny_run.start()} | given))
    assert int(state.critic.step) == 4 and int(state.step) == 2 == step
    critics = {g.iteration: g for row, g in seen.written if row.stage == Stage.CRITIQUE}
    shares = given["critic.training.weights"] == "policy"
    assert [critics[i].weights_step for i in (0, 1)] == ([0, 1] if shares else [0, 2])
    first, second = (jax.tree.leaves(critics[i].params) for i in (0, 1))
    assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4 for a, b in zip(first, second, strict=True))
    assert (state.critic.params is None) == shares
    own = {row.loss for rows in seen.updates for row in rows if row.loss == LossKind.RCO}
    assert bool(own) == (given["critic.training.loss"] == "rco")
    policy = {id(g.params) for row, g in seen.written if row.stage == Stage.RESPONSE}
    assert ({id(one.params) for one in critics.values()} <= policy) == shares


@pytest.mark.parametrize("weights", ["adapter", "model"])
def test_weights_of_its_own_leave_the_policys_alone(tmp_path, folder, weights):
    """An iteration's policy is bitwise the same however far its critic moves; what differs is the critic."""
    states = []
    for rate in (0.0, 1e-3):
        given = changes(weights, folder, **{"critic.training.learning_rate": rate})
        done = run(tmp_path / str(rate), given, num_iterations=1)
        _, state = tiny_run.restore(done, tiny_run.config({"model.init": tiny_run.start()} | given))
        states.append(state)
    still, moved = ([np.asarray(x).tobytes() for x in jax.tree.leaves(one.params)] for one in states)
    assert still == moved
    still, moved = ([np.asarray(x).tobytes() for x in jax.tree.leaves(one.critic.params)] for one in states)
    assert still != moved


def test_the_first_update_of_rco_starts_where_the_critic_wrote(tmp_path, folder, monkeypatch):
    """Of weights of its own: its log-ratio is exactly 0 before the first update, and what is left is the target."""
    found, update = [], train_step.update

    def watch(state, rows, **keywords):
        state, stats = update(state, rows, **keywords)
        if rows[0].loss == LossKind.RCO:
            found.append(([row.advantage for row in rows], stats))
        return state, stats

    monkeypatch.setattr(train_step, "update", watch)
    run(tmp_path, changes("model", folder), num_iterations=1)
    (targets, first), (again, second) = found
    assert targets == again and first["rco/log_ratio_sum"] == 0.0 != second["rco/log_ratio_sum"]
    np.testing.assert_allclose(first["rco/residual_sum"], np.abs(targets).sum(), rtol=1e-5)
    np.testing.assert_allclose(first["rco_loss"], np.mean(np.square(targets)) / 2, rtol=1e-5)
    assert second["rco_loss"] < first["rco_loss"]


def test_critiques_that_achieve_alike_move_nothing(tmp_path, babbling):
    """Of a model whose critiques are noise all rewards of a group are equal: its weights stay bitwise the same."""
    given = changes("model", babbling, **{"critic.max_prompt_length": 192})
    done = run(tmp_path, given, num_iterations=1)
    (row,), (rows,) = metrics(done), rollouts(done)
    trained = [one.train_row for one in rows if one.rollout.stage == Stage.CRITIQUE]
    assert {one.advantage for one in trained} == {0.0} and row["critic/rows_trained"] == 0
    _, state = tiny_run.restore(done, tiny_run.config({"model.init": tiny_run.start()} | given))
    before = hf_folders.random_params(hf_config.read_config(babbling))
    for ours, theirs in zip(jax.tree.leaves(state.critic.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_evaluation_asks_the_critic_that_was_trained(tmp_path, folder, monkeypatch, capsys):
    """`evaluate --refine` of a run whose critic is an adapter: critiques are of the policy's weights with it."""
    given = changes("adapter", folder, **{"data.num_eval": 4})
    done = run(tmp_path, given, num_iterations=0)
    state = trained_elsewhere(done, given)
    asked, write = [], generators.Generator.write_critique

    async def watch(self, *args, **keywords):
        asked.append(self.params)
        return await write(self, *args, **keywords)

    monkeypatch.setattr(generators.Generator, "write_critique", watch)
    entry_points.run_evaluate(done, given | {"model.init": tiny_run.start()}, "--refine")
    merged = lora.Base(state.params, 32.0 / 16).merge(state.critic.params)
    assert asked
    for written in asked:
        stacked = np.stack([np.asarray(layer["q"]) for layer in written["layers"]])
        np.testing.assert_allclose(stacked, np.asarray(merged["layers"]["q"]), rtol=1e-6)
    assert np.abs(np.asarray(merged["layers"]["q"]) - np.asarray(state.params["layers"]["q"])).max() > 1e-4
    conversion.export_hf(done, tmp_path / "exported")
    said = f"the policy of {done} is exported; its critic has weights of its own, for --of=critic"
    assert said in capsys.readouterr().err


def test_sample_asks_the_critic_that_was_trained(tmp_path, folder, monkeypatch):
    """A model of its own: the critique of a question that a person asks is of the weights in the checkpoint."""
    given = changes("model", folder)
    done = run(tmp_path, given, num_iterations=0)
    state = trained_elsewhere(done, given)
    asked, write = [], generators.Generator.write_critique

    async def watch(self, *args, **keywords):
        asked.append(self.params)
        return await write(self, *args, **keywords)

    monkeypatch.setattr(generators.Generator, "write_critique", watch)
    start = {"model.init": tiny_run.start()}
    entry_points.run_sample(done, "--question=7*8", "--answer=57", changes=given | start)
    before = load.load_params(folder, hf_config.read_config(folder))
    assert np.abs(np.asarray(state.critic.params["layers"]["q"]) - before["layers"]["q"]).max() > 1e-4
    for written in asked:
        stacked = np.stack([np.asarray(layer["q"]) for layer in written["layers"]])
        np.testing.assert_array_equal(stacked, state.critic.params["layers"]["q"])
    assert asked


@pytest.mark.parametrize("weights", ["policy", "adapter", "model"])
def test_a_trained_critic_goes_out_and_criticises_elsewhere(tmp_path, folder, weights, monkeypatch, capsys):
    """Exported, it is a folder that another run has as its critic, with the very weights that write in this one."""
    given = changes(weights, folder, **{"critic.training.learning_rate": 3e-2})
    done = run(tmp_path / "run", given, num_iterations=1)
    out = tmp_path / "critic"
    conversion.export_hf(done, out, of="critic")
    shares = f"the critic of {done} is its policy: what is exported are the weights of both"
    assert (shares in capsys.readouterr().err) == (weights == "policy")
    _, state = tiny_run.restore(done, tiny_run.config({"model.init": tiny_run.start()} | given))
    expected = state.params if weights == "policy" else state.critic.params
    if weights == "adapter":
        expected = lora.Base(state.params, 32.0 / 16).merge(state.critic.params)
    shape = hf_config.read_config(out)
    exported = load.load_params(out, shape)
    for ours, theirs in zip(jax.tree.leaves(exported), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 if weights == "adapter" else 0)  # of its product
    card = (out / "README.md").read_text()
    assert "after iteration 1 of a run of its `train`, as the critic, weights in float32" in card
    assert "Tried: {response}" in card and '.replace("{response}", "2 + 3 = 6. Answer: 6")' in card

    seen = tiny_run.watch(monkeypatch)
    asks = {"critique.kind": "cot", "critique.when": "all", "critic.kind": "folder", "critic.folder": str(out)}
    run(tmp_path / "other", asks | {"data.num_eval": 0}, num_iterations=1)
    critiques = seen.of(Stage.CRITIQUE)
    assert critiques and {row.author for row in critiques} == {Author.CRITIC}
    (written,) = {id(g.params): g.params for row, g in seen.written if row.stage == Stage.CRITIQUE}.values()
    for layer, ours in enumerate(written["layers"]):
        np.testing.assert_array_equal(ours["q"], exported["layers"]["q"][layer])


def test_the_adapter_of_a_critic_goes_out_by_itself(tmp_path):
    """For peft, on the policy of the same checkpoint and on no other; the run's policy began as `start`."""
    start, done = converted.make_folder(tmp_path / "start", hf_folders.LLAMA), tmp_path / "run"
    own = converted.made_up_critic_run(done, start, start, weights="adapter")
    with pytest.raises(UserError, match="export that with --from=.* --step=1 --to_hf=DIR, and name DIR with --base"):
        conversion.export_peft(done, tmp_path / "adapter", of="critic")
    with pytest.raises(UserError, match="start is not the policy of .* at step 1, which the critic's adapter belongs"):
        conversion.export_peft(done, tmp_path / "adapter", of="critic", base=str(start))
    with pytest.raises(UserError, match="which is read there; leave --base out"):
        conversion.export_hf(done, tmp_path / "merged", of="critic", base=str(start))
    assert not (tmp_path / "adapter").exists()
    for dtype in ("float32", "bfloat16"):
        conversion.export_hf(done, tmp_path / dtype, dtype=dtype)
        adapter = tmp_path / f"of {dtype}"
        conversion.export_peft(done, adapter, of="critic", base=str(tmp_path / dtype))
        converted.same_bits(converted.weights(adapter), dict(lora.peft_tensors(own)))
        assert f'base_model: "{dtype}"' in (adapter / "README.md").read_text()
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            tmp_path / dtype
        )


def test_eight_devices_agree_with_one(tmp_path, folder):
    """The same critiques, up to rounding: what an iteration says of both."""
    given, mesh = changes("adapter", folder), {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    one = metrics(run(tmp_path / "one", given, num_iterations=1))[0]
    other = metrics(run(tmp_path / "eight", given | mesh, num_iterations=1))[0]
    for name in ("critic/utility", "critic/rows_trained", "critic/verdict_accuracy", "reward"):
        assert one[name] == other[name]
    for name in ("critic/loss", "critic/grad_norm", "loss"):
        assert other[name] == pytest.approx(one[name], rel=1e-3)
