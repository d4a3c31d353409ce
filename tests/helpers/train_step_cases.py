"""What the tests of training/test_train_step share with those that take longer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import EVERYTHING, plain_logits, plain_logprobs, random_params

from cgrpo_jax.objective import AGGREGATES
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import train_step as train_step_lib
from cgrpo_jax.training.optimizer import init_state
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows
from cgrpo_jax.training.train_step import LossSettings, accumulate_gradients

CONFIG = dataclasses.replace(EVERYTHING, vocab_size=41, embed_dim=16, mlp_dim=16)
SHAPE = PackShape(num_token_rows=2, pack_length=24, num_slots=5, sampler_logp=True)
COUNTS = dict(num_responses=3, num_refinements=1)
SETTINGS = {name: LossSettings(max_length=8, temperature=0.8, aggregate=name, **COUNTS) for name in AGGREGATES}
PLAIN = SETTINGS["constant"]
REGULARISED = dataclasses.replace(PLAIN, kl_coef=0.3, entropy_coef=0.2)
# Every value of every choice of the objective, in as few programs.
NEIGHBOURS = {
    "sequence_importance": dict(initial_ratio="sequence", refined_ratio="importance", aggregate="sequence_mean"),
    "cispo_plain": dict(initial_ratio="cispo", refined_ratio="plain", aggregate="token_mean", clip_high=0.1),
    "token_logp_k1": dict(refined_ratio="logp", kl_coef=0.3, kl="k1"),
    "token_clipped_k2": dict(clip_refined=True, kl_coef=0.3, kl="k2", aggregate="paper"),
    "token_weighed": dict(tis_cap=1.1),
    "sequence_masked": dict(initial_ratio="sequence", tis_cap=1.1, tis_level="sequence_mask"),
}
NEIGHBOURS = {name: dataclasses.replace(PLAIN, **values) for name, values in NEIGHBOURS.items()}
MODEL = dict(config=CONFIG, shape=SHAPE)
SGD = optax.sgd(1.0)  # the step is the gradient


@functools.cache
def params():
    return random_params(CONFIG)


def fresh_state(optimizer=SGD):
    """A state of its own buffers: an update takes those of the state it is given."""
    return init_state(jax.tree.map(jnp.array, params()), optimizer)


def update(rows, *, state=None, optimizer=SGD, settings=PLAIN, **keywords):
    return train_step_lib.update(
        state or fresh_state(optimizer),
        rows,
        optimizer=optimizer,
        settings=settings,
        num_questions=3,
        **MODEL,
        **keywords,
    )


def gradient(rows, settings=PLAIN, **keywords):
    return accumulate_gradients(params(), rows, settings=settings, num_questions=3, **MODEL, **keywords)[0]


def relative_difference(a, b):
    difference = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)
    return norm(difference) / norm(b)


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


def make_row(rng, context, target, *, drift=0.1, **fields):
    """A row whose old policy differs from the current one by `drift` nats a token, at random.

    `context` is its tokens, or how many there are.
    """
    if isinstance(context, int | np.integer):
        context = rng.integers(0, CONFIG.vocab_size, context).astype(np.int32)
    context_ids, target_ids = context, rng.integers(0, CONFIG.vocab_size, target).astype(np.int32)
    logp = plain_logprobs(params(), CONFIG, context_ids, target_ids, temperature=PLAIN.temperature)
    noisy = lambda: (logp + rng.uniform(-drift, drift, target)).astype(np.float32)  # noqa: E731
    fields = {"advantage": float(rng.choice([-0.75, 0.5])), "old_logp": noisy(), "ref_logp": noisy()} | fields
    fields = {"sampler_logp": fields["old_logp"] + rng.uniform(-0.2, 0.2, target).astype(np.float32)} | fields
    return TrainRow(context_ids=context_ids, target_ids=target_ids, **fields)


@functools.cache
def mixed_rows():
    """Initial rows (some past the clip), refined rows, rows of advantage 0 and nll rows: three packed batches.

    The first four, and the first refined one, answer one question: their prompt is shared.
    """
    rng = np.random.default_rng(0)
    rows = [make_row(rng, rng.integers(1, 12), rng.integers(1, 9), drift=0.6) for _ in range(4)]
    rows += [make_row(rng, rows[0].context_ids, rng.integers(1, 9), drift=0.6) for _ in range(3)]
    rows += [make_row(rng, rows[0].context_ids, 7, refined=True), make_row(rng, 3, 6, refined=True)]
    rows += [make_row(rng, 4, 5, advantage=0.0) for _ in range(2)]
    rows += [make_row(rng, 5, n, advantage=w, loss=LossKind.NLL) for n, w in ((6, 1.0), (3, 0.5))]
    return [rows[i] for i in rng.permutation(len(rows))]


def surrogate_by_definition(row, logp, settings):
    """What weighs the advantage of a row's tokens, by each method's equation; the weight of cispo is held fixed."""
    pi, ratio = np.exp(logp), np.exp(logp - row.old_logp)
    if row.refined:
        known = {"shaped": pi / (pi + settings.gamma), "importance": ratio, "plain": pi, "logp": logp}
        ratio, clips = known[settings.refined_ratio], settings.clip_refined
    else:
        sequence = np.exp(np.mean(logp - row.old_logp)) + 0 * logp
        held = plain_logprobs(params(), CONFIG, row.context_ids, row.target_ids, temperature=settings.temperature)
        cispo = np.minimum(np.exp(held - row.old_logp), 1 + settings.clip_high) * logp
        ratio = {"token": ratio, "sequence": sequence, "cispo": cispo}[settings.initial_ratio]
        clips = settings.clip_initial and settings.initial_ratio != "cispo"
    if not clips:
        return ratio * row.advantage
    clipped = np.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return np.minimum(ratio * row.advantage, clipped * row.advantage)


def weight_by_definition(row, settings):
    """What truncated, or masked, importance sampling makes of what the sampler did otherwise."""
    if row.refined or not settings.tis_cap:
        return 1.0
    gap = np.asarray(row.old_logp, np.float64) - row.sampler_logp
    if settings.tis_level == "sequence_mask":
        return np.exp(gap.sum()) * (np.exp(gap.sum()) <= settings.tis_cap)
    return np.minimum(np.exp(gap), settings.tis_cap)


def loss_by_definition(params, rows, settings, *, num_questions):
    """DESIGN's objective (Eq. 3 and 4) row by row from whole logits, in float64; the value to minimise."""
    policy = [row for row in rows if row.loss == LossKind.POLICY]
    num_tokens = sum(len(row.target_ids) for row in policy if not row.masked)
    nll_tokens = sum(len(row.target_ids) for row in rows if row.loss == LossKind.NLL)
    loss = 0.0
    for row in rows:
        if row.masked:
            continue
        T = len(row.target_ids)
        logits = plain_logits(params, CONFIG, np.concatenate([row.context_ids, row.target_ids[:-1]]))
        logits = logits[-T:] / settings.temperature
        logp_TV = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        logp = logp_TV[np.arange(T), row.target_ids]
        if row.loss == LossKind.NLL:
            loss -= row.advantage * logp.sum() / nll_tokens
            continue
        term = weight_by_definition(row, settings) * surrogate_by_definition(row, logp, settings)
        if settings.kl_coef:
            difference = row.ref_logp - logp
            estimate = {"k1": -difference, "k2": difference**2 / 2, "k3": np.exp(difference) - difference - 1}
            term = term - settings.kl_coef * estimate[settings.kl]
        term = term - settings.entropy_coef * np.sum(np.exp(logp_TV) * logp_TV, axis=-1)
        weight = {
            "constant": 1 / (len(policy) * settings.max_length),
            "paper": 1 / (num_questions * (settings.num_refinements if row.refined else settings.num_responses)),
            "token_mean": 1 / num_tokens,
            "sequence_mean": 1 / (len(policy) * T),
        }[settings.aggregate]
        loss -= weight * term.sum()
    return loss


def hold_masked_rows(settings):
    """A masked row counts as the definition's whose mask is 0: the others' weights are those beside such a row."""
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    rows = [row.replace(masked=number % 4 == 0) for number, row in enumerate(rows)]
    _, stats = update(rows, settings=settings)
    loss = loss_by_definition(params(), rows, settings, num_questions=3)
    np.testing.assert_allclose(stats["policy_loss"], loss, rtol=1e-4, atol=1e-6)
    assert stats["rows_trained"] == sum(train_step_lib.has_gradient(row, settings) for row in rows) < len(rows)
    _, everything = update(rows, settings=settings, drop_zero=False)
    assert everything["rows_trained"] == sum(not row.masked for row in rows)


def score(params, rows, **keywords):
    return score_rows(params, rows, config=CONFIG, shape=SHAPE, max_length=8, temperature=0.8, **keywords)
