"""A frozen refiner of another family, tokenizer and chat template, in a run: from its text to train rows."""

import chat_tokenizer
import hf_folders
import jax
import numpy as np
import pytest
import tiny_run
from chain_prompts import arithmetic_tokenizer
from meshes import make_mesh
from tiny_run import metrics, rollouts, run

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.runs import build_model
from cgrpo_jax.runs.settings import run_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of another shape than the policy's, which writes any bytes."""
    path = tmp_path_factory.mktemp("refiner") / "model"
    settings = hf_folders.QWEN3 | {"vocab_size": 258, "max_position_embeddings": 256}
    settings |= {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12}
    hf_folders.write_folder(path, settings, {})
    shape = hf_config.read_config(path)
    hf_folders.write_folder(path, settings, hf_folders.stored_tensors(hf_folders.random_params(shape), shape))
    return chat_tokenizer.write(path, **chat_tokenizer.OTHER)


def changes(folder, **more):
    return {
        "data.num_eval": 0,
        "critique.kind": "indicative",
        "refiner.folder": str(folder),
        "refine.max_prompt_length": 192,
        **more,
    }


def test_what_a_frozen_model_refines_trains_the_policy(tmp_path, folder, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    # Wrong refinements beside right responses train, too.
    done = run(tmp_path, changes(folder, **{"refine.max_pass": 0.75}))
    written = [row for row, generator in seen.written if generator.author == Author.REFINER]
    models = {id(g.params["embed"]) for _, g in seen.written if g.author == Author.REFINER}
    assert written and len(models) == 1 and {row.stage for row in written} == {Stage.REFINEMENT}
    assert {row.author for row in seen.of(Stage.RESPONSE)} == {Author.POLICY}
    ours, theirs = arithmetic_tokenizer(), load_tokenizer(folder)
    # By hand: its text, of its own tokens, becomes ours, with our end of turn where its own was sampled.
    expected = {}
    for row in written:
        assert theirs.decode(row.prompt_ids).startswith("user: ") and "bot: " in theirs.spell(row.prompt_ids)
        ended = row.token_ids[-1] == theirs.end_of_turn_id
        assert ended != row.truncated
        ids = ours.encode_turn(theirs.decode(row.token_ids))
        ids = [*ids, ours.end_of_turn_id] if ended and len(ids) < 16 else ids[:16]
        expected[row.index, row.prompt_ids.tobytes()] = ids
    refined = [row for update in seen.updates for row in update if row.refined]
    assert refined and all(list(row.target_ids) in expected.values() for row in refined)
    questions = {row.prompt_ids.tobytes() for row in seen.of(Stage.RESPONSE)}
    assert all(row.context_ids.tobytes() in questions for row in refined)
    kept = 0
    for rows in rollouts(done):
        for row in rows:
            one = row.rollout
            if one.stage != Stage.REFINEMENT:
                continue
            assert one.author == Author.REFINER and one.weights_step == 0 and not one.logp.any()
            assert list(one.token_ids) == expected[one.index, one.prompt_ids.tobytes()]
            assert one.asked == theirs.spell(one.prompt_ids) and one.text == ours.decode(one.token_ids)
            kept += row.train_row is not None
    assert kept == len(refined)
    assert all(np.isfinite(row["loss"]) and row["refine/attempted"] for row in metrics(done))
    assert any(row.get("refined/prob", 0) > 0 for row in metrics(done))


def test_it_lies_in_the_policys_mesh_cut_as_generation_reads_it(tmp_path, folder):
    config = tiny_run.config(changes(folder))
    settings = run_settings(config, make_mesh("2x2x2"))
    ((whose, (model, params)),) = build_model.load_frozen(config, settings).items()
    assert whose == "refiner" and model.mesh == settings.mesh
    q = jax.tree.leaves(params["layers"])[0]
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params)) and q.dtype == np.float32
    (alone,) = build_model.load_frozen(config, run_settings(config, make_mesh("1x1x1"))).values()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), params, alone[1])
    # Heads are cut over tensor, and nothing over fsdp.
    cut = [leaf.sharding.spec for leaf in jax.tree.leaves(params)]
    assert any("tensor" in spec for spec in cut) and not any("fsdp" in spec for spec in cut)


def test_what_a_refiner_can_not_hold_is_one_line(tmp_path, folder):
    with pytest.raises(
        UserError, match="refine.max_prompt_length \\+ max_response_length is 250 \\+ 16, more than the 256"
    ):
        run_settings(tiny_run.config(changes(folder, **{"refine.max_prompt_length": 250})), make_mesh("1x1x1"))
