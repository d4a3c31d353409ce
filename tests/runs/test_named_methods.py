"""Each file of configs/methods changes values of the paper's configuration alone, and its loss is its equation's."""

import ml_collections
import numpy as np
import paths
import pytest
from method_equations import DISTILLED, EQUATIONS, FILES, Batch, loss_of, values_of
from scripted_rollouts import response, row

from cgrpo_jax import groups
from cgrpo_jax.records import LossKind, RowIndex, Stage
from cgrpo_jax.runs import build_training, settings, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.training import distillation, packing

# Rows of a question that all responses fail: initial ones, and refined ones.
ROWS = {
    **dict.fromkeys(EQUATIONS, (7, 1)),
    **dict.fromkeys(("r1_grpo", "dr_grpo", "gspo", "cispo", "critique_coder", "ladder_1", "ladder_2"), (8, 0)),
    "dapo": (16, 0),
    "rltf_sd": (7, 7),
    "nurl": (1, 7),
}


def config(name):
    return config_lib.freeze(config_lib.load(FILES[name]))


def rows_of(config):
    """A question's responses, of which all fail but, where nothing is refined, two; and what is refined of them."""
    refines, n = config.refine.kind != "none", config.num_responses
    passes = () if refines else (1, 4)
    responses = [response(0, number, float(number in passes)) for number in range(n)]
    responses[2] = responses[2].replace(truncated=True)
    kept = [row(RowIndex(0, number, stage=Stage.REFINEMENT), "56", reward=float(number % 2)) for number in range(n)]
    kept = groups.select(kept, num_kept=config.refine.num_kept, seed=0, iteration=0, order=config.refine.select)
    return responses, kept if refines else []


def batch_of(config, rows, trained):
    rng = np.random.default_rng(0)
    length = np.array([len(one.target_ids) for one in trained])
    shape = len(rows), int(length.max())
    old = -rng.exponential(1.0, shape) - 0.5
    return Batch(
        reward=np.array([one.reward for one in rows]),
        question=np.zeros(len(rows), int),
        length=length,
        refined=np.array([one.refined for one in trained]),
        truncated=np.array([one.truncated for one in rows]),
        logp=np.minimum(old + rng.normal(0, 1, shape), -1e-3),
        old=old,
        ref=old + rng.normal(0, 0.5, shape),
        entropy=rng.uniform(0, 2, shape),
        max_length=config.max_response_length,
        num_responses=config.num_responses,
        num_kept=config.refine.num_kept,
    )


def test_every_file_has_its_equation():
    assert FILES.keys() == EQUATIONS.keys() | DISTILLED.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_file_changes_values_of_the_papers_configuration_and_nothing_else(name):
    module = config_lib.load(FILES[name])
    values = values_of(name)
    expected = config_lib.load(paths.CONFIGS / "paper.py")
    expected.update_from_flattened_dict(values)
    assert isinstance(module, ml_collections.ConfigDict) and module.to_dict() == expected.to_dict()
    validate.check(config(name))
    text = FILES[name].read_text()
    assert "arXiv" in text.split('"""')[1] and "J = " in text or "A as before" in text


@pytest.mark.parametrize("base", sorted(path.stem for path in paths.CONFIGS.glob("*.py") if path.stem != "__init__"))
def test_the_values_go_with_every_configuration_that_has_questions_enough(base):
    """Four minibatches divide them, and a fifth of them is one at least."""
    for name in FILES:
        c = config_lib.load(paths.CONFIGS / f"{base}.py")
        c.update_from_flattened_dict(values_of(name))
        found = list(validate.violations(config_lib.freeze(c)))
        divides = name != "gspo" or c.questions_per_iteration % 4 == 0
        enough = name != "critique_coder" or c.questions_per_iteration > 2
        fault = "" if divides and enough else "does not divide" if enough else "is less than half a question"
        assert len(found) == bool(fault) and all(fault in one for one in found)


@pytest.mark.parametrize("step, name", [("ladder_1", "r1_grpo"), ("ladder_2", "dr_grpo")])
def test_the_first_steps_of_the_ladder_are_the_baselines(step, name):
    assert values_of(step) == values_of(name)


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_loss_is_the_equations(name):
    c = config(name)
    grouping = settings.grouping(c)
    responses, kept = rows_of(c)
    (group,) = groups.reanchor([responses], kept, join=grouping.join)
    (trained,) = groups.train_rows([group], grouping)
    assert (sum(not one.refined for one in trained), sum(one.refined for one in trained)) == ROWS[name]
    b = batch_of(c, group.rows, trained)
    if name == "dapo":  # one response in the last fifth of its length, another at its end
        b.length[3], b.length[5] = b.max_length - 614, b.max_length
        group.rows[3] = group.rows[3].replace(token_ids=np.zeros(b.length[3], np.int32))
        group.rows[5] = group.rows[5].replace(token_ids=np.zeros(b.length[5], np.int32))
        (trained,) = groups.train_rows([group], grouping)
        b = batch_of(c, group.rows, trained)
    value = loss_of(build_training.loss_settings(c), trained, b.logp, b.old, ref=b.ref, entropy=b.entropy)
    np.testing.assert_allclose(-value, EQUATIONS[name](b), rtol=2e-5, atol=1e-7)


def test_what_is_distilled_is_the_equations():
    """Two failed responses of eight, of distances that are not the policy's to choose here."""
    c = config("sdpo")
    grouping, loss = settings.grouping(c), build_training.loss_settings(c)
    responses = [response(0, number, float(number > 1)) for number in range(8)]
    for number in (0, 1):
        responses[number] = responses[number].replace(feedback_ids=np.arange(9))
    (group,) = groups.reanchor([responses], [], join=grouping.join)
    (trained,) = groups.train_rows([group], grouping)
    assert {one.loss for one in trained} == {LossKind.DISTIL}
    assert [one.feedback_ids is not None for one in trained] == [True] * 2 + [False] * 6
    length = np.array([len(one.target_ids) for one in trained])
    mask = np.arange(length.max()) < length[:, None]
    distance = np.random.default_rng(0).uniform(0, 1, mask.shape).astype(np.float32)
    shape = packing.PackShape(1, 16, len(trained), top_tokens=c.distil.top_tokens)
    batch = packing.empty_batch(shape, max_length=mask.shape[1], num_groups=1)
    batch = batch.replace(distil_B=np.arange(8) < 2, alone_B=np.ones(8, bool))
    counts = dict(num_rows=8, num_tokens=length.sum(), num_questions=1, num_responses=8, num_refinements=1)
    value, _ = distillation.distil_loss(
        batch, mask, distance, distance, coef=loss.distil_coef, aggregate=loss.aggregate, max_length=99, **counts
    )
    np.testing.assert_allclose(value, np.sum((distance * mask)[:2]) / mask.sum(), rtol=1e-6)
    assert (loss.divergence, build_training.distillation(c).average_rate) == ("reverse_kl", 0.01)
