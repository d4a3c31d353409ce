"""The update on rows of RCO, on pairs, and on chats of which some targets count, against whole logits in float64."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from meshes import assert_close
from tiny import plain_logprobs
from train_step_cases import CONFIG, params

from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import scoring
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.row_losses import rco_targets
from cgrpo_jax.training.train_step import LossSettings, accumulate_gradients

BETA = 0.3
SETTINGS = LossSettings(max_length=8, beta=BETA)
SHAPE = PackShape(num_token_rows=2, pack_length=24, num_slots=5, from_rows=True)


def make(rng, context, length, kind, **fields):
    target = rng.integers(0, CONFIG.vocab_size, length).astype(np.int32)
    ref = rng.uniform(-4, -3, length).astype(np.float32)
    return TrainRow(
        context, target, np.zeros(length, np.float32), loss=kind, ref_logp=ref, **{"advantage": 1.0} | fields
    )


@functools.cache
def rows():
    """Three pairs, a group of critiques, and chats; more than one packed batch holds."""
    rng = np.random.default_rng(0)
    context = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)  # noqa: E731
    found = []
    for number, weight in ((1, 1.0), (2, 0.5), (3, 1.0)):
        asked = context(4 + number)
        found += [
            make(rng, asked, 6 - n, LossKind.DPO, pair=pair, advantage=weight)
            for n, pair in enumerate((number, -number))
        ]
    criticised = context(6)
    (targets,) = rco_targets([[1.0, 0.5, 0.0]], beta=BETA)
    found += [
        make(rng, criticised, n, LossKind.RCO, advantage=float(v)) for n, v in zip((3, 5, 8), targets, strict=True)
    ]
    for n in (4, 8):
        found.append(make(rng, context(3), n, LossKind.NLL, counted=np.arange(n) % 3 != 1))
    return tuple(found)


def loss_by_definition(weights):
    total, nll, counted, ratios = 0.0, 0.0, 0, {}
    for row in rows():
        logp = plain_logprobs(weights, CONFIG, row.context_ids, row.target_ids)
        if row.loss == LossKind.NLL:
            nll, counted = nll - logp[row.counted].sum(), counted + row.counted.sum()
        log_ratio = (logp - row.ref_logp).sum()
        if row.loss == LossKind.RCO:
            total += (log_ratio - row.advantage) ** 2 / (2 * 3)
        if row.pair:
            ratios[row.pair] = row.advantage, log_ratio
    for number in (1, 2, 3):
        (weight, chosen), (_, rejected) = ratios[number], ratios[-number]
        total += weight * np.log1p(np.exp(-BETA * (chosen - rejected))) / 3
    return total + nll / counted


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The program that these tests share."""
    gradients(rows())


def gradients(some, shape=SHAPE, **keywords):
    return accumulate_gradients(params(), some, config=CONFIG, settings=SETTINGS, shape=shape, **keywords)


def test_the_gradient_is_that_of_the_definition():
    """Along random directions, by differences of the loss in float64."""
    grads, stats = gradients(rows())
    assert stats["rco_loss"] + stats["dpo_loss"] + stats["nll_loss"] == pytest.approx(
        loss_by_definition(params()), rel=1e-4
    )
    assert stats["policy_loss"] == 0 and stats["initial/tokens"] == 0
    rng = np.random.default_rng(1)
    for _ in range(2):
        step = jax.tree.map(lambda x: rng.normal(size=x.shape), params())
        moved = [
            jax.tree.map(lambda x, d, e=e: np.asarray(x, np.float64) + e * d, params(), step) for e in (1e-6, -1e-6)
        ]
        slope = (loss_by_definition(moved[0]) - loss_by_definition(moved[1])) / 2e-6
        along = sum(
            np.sum(np.asarray(g, np.float64) * d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(step), strict=True)
        )
        assert along == pytest.approx(slope, rel=1e-3)


def test_packing_does_not_change_it():
    """In another order the rows lie in other token rows, and the pairs have other numbers."""
    whole, parted = (gradients(some)[0] for some in (rows(), rows()[::-1]))
    assert_close(parted, whole, rtol=1e-4)
    renumbered = [dataclasses.replace(row, pair=int(np.sign(row.pair)) * (9 - abs(row.pair))) for row in rows()]
    assert_close(gradients(renumbered)[0], whole, rtol=1e-4)


def test_what_is_between_turns_teaches_nothing():
    """Other targets where none count, and other weights of what is not there, leave the gradient as it is."""
    chats = [row for row in rows() if row.loss == LossKind.NLL]
    apart = [dataclasses.replace(row, counted=np.arange(len(row.target_ids)) < 1) for row in chats]
    first = [
        dataclasses.replace(row, **{name: getattr(row, name)[:1] for name in ("target_ids", "old_logp", "ref_logp")})
        for row in apart
    ]
    first = [dataclasses.replace(row, counted=None) for row in first]
    assert_close(gradients(apart)[0], gradients(first)[0], rtol=1e-5)


@pytest.mark.parametrize("from_rows, row_block", [(True, 14), (False, 40)])
def test_the_output_layer_takes_the_places_of_targets_in_parts(from_rows, row_block, monkeypatch):
    """Of 5 rows of up to 8 targets 40 places: those of `finetune` in three parts, which are left out where empty."""
    seen, whole = [], scoring.linear_logprobs

    def noted(hidden_ND, *arrays, **keywords):
        seen.append((len(hidden_ND), keywords["row_block"]))
        return whole(hidden_ND, *arrays, **keywords)

    monkeypatch.setattr(scoring, "linear_logprobs", noted)
    chats = [dataclasses.replace(row, counted=None) for row in rows() if row.loss == LossKind.NLL]
    shape = dataclasses.replace(SHAPE, pack_length=25, from_rows=from_rows)  # of which nothing is compiled yet
    gradients(chats, shape)
    assert set(seen) == {(40, row_block)}


def test_what_it_needs_is_asked_for():
    with pytest.raises(ValueError, match="need ref_logp"):
        gradients([dataclasses.replace(row, ref_logp=None) for row in rows()])
    with pytest.raises(ValueError, match="need a shape with from_rows=True"):
        gradients(rows(), dataclasses.replace(SHAPE, from_rows=False))
