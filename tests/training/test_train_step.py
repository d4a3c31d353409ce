"""The update against its loss written out in float64, and the invariants that keep a minibatch a minibatch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import EVERYTHING, plain_logits, plain_logprobs, random_params

from cgrpo_jax import sharding
from cgrpo_jax.models.params import axes_like, init_params, param_shapes
from cgrpo_jax.objective import AGGREGATES
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import train_step as train_step_lib
from cgrpo_jax.training.optimizer import init_state, make_optimizer
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows
from cgrpo_jax.training.train_step import LossSettings, accumulate_gradients

CONFIG = dataclasses.replace(EVERYTHING, vocab_size=41, embed_dim=16, mlp_dim=16)
SHAPE = PackShape(num_token_rows=2, pack_length=24, num_slots=5)
COUNTS = dict(num_responses=3, num_refinements=1)
SETTINGS = {name: LossSettings(max_length=8, temperature=0.8, aggregate=name, **COUNTS) for name in AGGREGATES}
PLAIN = SETTINGS["constant"]
REGULARISED = dataclasses.replace(PLAIN, kl_coef=0.3, entropy_coef=0.2)
MODEL = dict(config=CONFIG, shape=SHAPE)
SGD = optax.sgd(1.0)  # the step is the gradient
aggregates = pytest.mark.parametrize("aggregate", AGGREGATES)


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


def relative_difference(a, b):
    difference = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)
    return norm(difference) / norm(b)


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


# The gradient, against the loss by its definition.


def loss_by_definition(params, rows, settings, *, num_questions):
    """DESIGN's objective (Eq. 3 and 4) row by row from whole logits, in float64; the value to minimise."""
    policy = [row for row in rows if row.loss == LossKind.POLICY]
    num_tokens = sum(len(row.target_ids) for row in policy)
    nll_tokens = sum(len(row.target_ids) for row in rows if row.loss == LossKind.NLL)
    loss = 0.0
    for row in rows:
        T = len(row.target_ids)
        logits = plain_logits(params, CONFIG, np.concatenate([row.context_ids, row.target_ids[:-1]]))
        logits = logits[-T:] / settings.temperature
        logp_TV = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        logp = logp_TV[np.arange(T), row.target_ids]
        if row.loss == LossKind.NLL:
            loss -= row.advantage * logp.sum() / nll_tokens
            continue
        ratio = np.exp(logp) / (np.exp(logp) + settings.gamma) if row.refined else np.exp(logp - row.old_logp)
        clipped = np.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
        term = np.minimum(ratio * row.advantage, clipped * row.advantage)
        if settings.kl_coef:
            difference = row.ref_logp - logp
            term = term - settings.kl_coef * (np.exp(difference) - difference - 1)
        term = term - settings.entropy_coef * np.sum(np.exp(logp_TV) * logp_TV, axis=-1)
        weight = {
            "constant": 1 / (len(policy) * settings.max_length),
            "paper": 1 / (num_questions * (settings.num_refinements if row.refined else settings.num_responses)),
            "token_mean": 1 / num_tokens,
            "sequence_mean": 1 / (len(policy) * T),
        }[settings.aggregate]
        loss -= weight * term.sum()
    return loss


@pytest.mark.parametrize("settings", [*SETTINGS.values(), REGULARISED], ids=[*SETTINGS, "kl and entropy"])
def test_the_gradient_is_that_of_the_loss_by_its_definition(settings):
    """Along a random direction of every tensor, against central differences of a float64 loss."""
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    actual = gradient(mixed_rows(), settings)
    leaves, structure = jax.tree.flatten(exact)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(exact)]
    rng = np.random.default_rng(0)
    for i, (name, g) in enumerate(zip(names, jax.tree.leaves(actual), strict=True)):
        direction = rng.normal(size=leaves[i].shape)
        step = 1e-6

        def loss(sign, i=i, direction=direction, step=step):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(leaves)]
            return loss_by_definition(structure.unflatten(moved), mixed_rows(), settings, num_questions=3)

        slope = (loss(1) - loss(-1)) / (2 * step)
        # Float32 sums: an error is relative to the gradient's length, not to its share along one direction.
        scale = np.linalg.norm(g)
        assert scale > 1e-4, name
        assert abs(np.sum(np.asarray(g, np.float64) * direction) - slope) < 1e-4 * scale, name


@aggregates
def test_packing_and_microbatching_do_not_change_the_gradient(aggregate):
    """Three packed batches, against one batch a row, added up."""
    rows, settings = mixed_rows(), SETTINGS[aggregate]
    policy = [row for row in rows if row.loss == LossKind.POLICY]
    counts = dict(num_rows=len(policy), num_tokens=sum(len(row.target_ids) for row in policy))
    nll_tokens = [len(row.target_ids) for row in rows if row.loss == LossKind.NLL]
    total = jax.tree.map(np.zeros_like, params())
    for row in rows:
        # Alone, an nll row is averaged over its own tokens.
        share = len(row.target_ids) / sum(nll_tokens) if row.loss == LossKind.NLL else 1.0
        alone = gradient([row.replace(advantage=row.advantage * share)], settings, **counts)
        total = jax.tree.map(np.add, total, alone)
    assert relative_difference(gradient(rows, settings), total) < 1e-5
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert relative_difference(gradient(shuffled, settings), total) < 1e-5


def test_statistics_are_sums_over_the_whole_minibatch():
    rows = mixed_rows()
    stats = accumulate_gradients(params(), rows, settings=PLAIN, num_questions=3, **MODEL)[1]
    for name, refined in (("initial", False), ("refined", True)):
        of_kind = [row for row in rows if row.loss == LossKind.POLICY and row.refined == refined]
        assert stats[f"{name}/tokens"] == sum(len(row.target_ids) for row in of_kind)
    loss = loss_by_definition(params(), rows, PLAIN, num_questions=3)
    np.testing.assert_allclose(stats["policy_loss"] + stats["nll_loss"], loss, rtol=1e-5)
    assert stats["initial/clip_low"] + stats["initial/clip_high"] > 0  # the rows of these tests do reach the clip


def test_the_number_of_programs_does_not_depend_on_the_rows():
    gradient(mixed_rows()[:1])
    before = train_step_lib.accumulate._cache_size()
    rng = np.random.default_rng(0)
    for count in (2, 5, 11):
        gradient([make_row(rng, rng.integers(1, 15), rng.integers(1, 9)) for _ in range(count)])
    assert train_step_lib.accumulate._cache_size() == before


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_what_an_update_returns_is_taken_without_compiling_again(mesh):
    replica, fsdp, tensor = mesh
    mesh = sharding.make_mesh(
        replica=replica, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: replica * fsdp * tensor]
    )
    config = dataclasses.replace(CONFIG, vocab_size=40, num_heads=4, num_kv_heads=2)
    template = sharding.param_shardings(axes_like(config, param_shapes(config)), param_shapes(config), mesh)
    optimizer = make_optimizer(learning_rate=1e-3)
    state = init_state(init_params(config, seed=0, shardings=template), optimizer)
    rng = np.random.default_rng(0)
    rows = [TrainRow(*rng.integers(0, 40, (2, 6)).astype(np.int32), np.zeros(6, np.float32), advantage=1.0)]
    programs = (train_step_lib.accumulate, optimizer_lib.apply)
    counts = []
    for _ in range(3):
        state, _ = train_step_lib.update(
            state, rows, optimizer=optimizer, config=config, settings=PLAIN, shape=SHAPE, mesh=mesh
        )
        counts.append([program._cache_size() for program in programs])
    assert counts[0] == counts[1] == counts[2]


# Rows of advantage 0.


@aggregates
def test_dropping_rows_without_advantage_changes_nothing(aggregate):
    """They count in the denominators all the same."""
    rows, settings = [row for row in mixed_rows() if row.loss == LossKind.POLICY], SETTINGS[aggregate]
    kept, kept_stats = update(rows, settings=settings, drop_zero=False)
    for given in ({}, {"num_rows": None, "num_tokens": None}):
        dropped, stats = update(rows, settings=settings, **given)
        assert (kept_stats["rows_trained"], stats["rows_trained"]) == (11, 9)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dropped.params, kept.params)
        np.testing.assert_allclose(stats["grad_norm"], kept_stats["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(kept_stats["grad_norm"], norm(gradient(rows, settings)), rtol=1e-5)
    # A minibatch that never had them is another one, except under "paper", which divides by questions.
    without = [row for row in rows if row.advantage]
    tokens = [sum(len(row.target_ids) for row in some) for some in (rows, without)]
    expected = {"paper": 1.0, "token_mean": tokens[0] / tokens[1]}.get(aggregate, 11 / 9)
    _, stats = update(without, settings=settings)
    np.testing.assert_allclose(stats["grad_norm"] / kept_stats["grad_norm"], expected, rtol=1e-5)


def test_a_minibatch_without_any_advantage_leaves_the_weights_alone():
    """All right or all wrong in every group, as at the start and at the end of training: nothing is even run."""
    rows = [row.replace(advantage=0.0) for row in mixed_rows() if row.loss == LossKind.POLICY]
    _, usual = update(mixed_rows())
    before = train_step_lib.accumulate._cache_size()
    state, stats = update(rows)
    assert train_step_lib.accumulate._cache_size() == before
    assert state.step == 1
    assert stats.keys() == usual.keys()  # those who log find every name
    assert set(stats.values()) == {0.0}
    jax.tree.map(np.testing.assert_array_equal, state.params, params())
    kept, stats = update(rows, drop_zero=False)
    assert stats["grad_norm"] == 0 and stats["rows_trained"] == len(rows)
    jax.tree.map(np.testing.assert_array_equal, kept.params, params())


def test_rows_without_advantage_are_kept_where_they_have_a_gradient():
    rows = [row.replace(advantage=0.0) for row in mixed_rows() if row.loss == LossKind.POLICY]
    _, stats = update(rows, settings=REGULARISED)
    assert stats["rows_trained"] == len(rows) and stats["grad_norm"] > 1e-3


# Kinds of rows.


def test_the_reference_enters_through_the_kl_term_alone():
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    other = [row.replace(ref_logp=row.ref_logp - 0.5) for row in rows]
    jax.tree.map(np.testing.assert_array_equal, gradient(rows), gradient(other))
    assert relative_difference(gradient(other, REGULARISED), gradient(rows, REGULARISED)) > 1e-2
    assert relative_difference(gradient(rows, REGULARISED), gradient(rows)) > 1e-2


def test_refined_rows_ignore_old_logp_and_initial_rows_do_not():
    row = make_row(np.random.default_rng(0), 5, 6, advantage=0.5)
    other = row.replace(old_logp=row.old_logp - 0.05)
    refined = gradient([row.replace(refined=True)])
    jax.tree.map(np.testing.assert_array_equal, refined, gradient([other.replace(refined=True)]))
    assert relative_difference(gradient([other]), gradient([row])) > 0.01
    assert relative_difference(refined, gradient([row])) > 0.1


def test_training_a_critique_by_likelihood_makes_it_likelier():
    """One critique row among policy rows, through the same packer and the same update."""
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    rng = np.random.default_rng(5)
    critique = make_row(rng, 6, 8, advantage=1.0, loss=LossKind.NLL, old_logp=np.zeros(8, np.float32), ref_logp=None)
    optimizer = make_optimizer(learning_rate=3e-3)
    state = fresh_state(optimizer)
    found = []
    for _ in range(6):
        found.append(score(state.params, [critique])[0].sum())
        state, stats = update([*rows[:4], critique, *rows[4:]], state=state, optimizer=optimizer)
        np.testing.assert_allclose(stats["nll_loss"], -found[-1] / 8, rtol=1e-4)
        assert stats["policy_loss"] != 0 and stats["initial/tokens"] > 0
    assert (np.diff(found) > 0).all() and found[-1] > found[0] + 1


def test_a_minibatch_of_likelihood_rows_alone():
    rows = [row for row in mixed_rows() if row.loss == LossKind.NLL]
    _, stats = update(rows)
    assert stats["policy_loss"] == 0 and stats["nll_loss"] > 0 and stats["grad_norm"] > 0
    assert stats["initial/tokens"] == stats["refined/tokens"] == 0


@pytest.mark.parametrize("num_rows", [None, 5])
def test_likelihood_rows_do_not_count_as_rows_of_the_objective(num_rows):
    nll = [row for row in mixed_rows() if row.loss == LossKind.NLL]
    policy = [row for row in mixed_rows() if row.loss == LossKind.POLICY]
    together, a, b = (gradient(rows, num_rows=num_rows) for rows in (policy + nll, policy, nll))
    assert relative_difference(jax.tree.map(np.add, a, b), together) < 1e-5


def test_what_a_setting_needs_is_asked_for():
    rows = mixed_rows()
    with pytest.raises(ValueError, match="kl_coef=0.3 needs ref_logp in every policy row"):
        gradient([*rows, rows[0].replace(ref_logp=None, loss=LossKind.POLICY)], REGULARISED)
    with pytest.raises(ValueError, match='aggregate="paper" needs .*; pass also num_questions'):
        accumulate_gradients(params(), rows, settings=SETTINGS["paper"], **MODEL)


# Scores, and the old policy.


def score(params, rows, **keywords):
    return score_rows(params, rows, config=CONFIG, shape=SHAPE, max_length=8, temperature=0.8, **keywords)


def test_scores_come_in_the_order_of_the_rows():
    """Packing sorts rows by size, over several batches; rows of advantage 0 and nll rows are scored like the rest."""
    rows = mixed_rows()
    scored = score(params(), rows)
    assert len({len(row.target_ids) for row in rows}) > 3
    for row, logp in zip(rows, scored, strict=True):
        assert logp.shape == row.target_ids.shape
        expected = plain_logprobs(params(), CONFIG, row.context_ids, row.target_ids, temperature=0.8)
        np.testing.assert_allclose(logp, expected, atol=1e-5)
    for back, there in zip(score(params(), rows[::-1])[::-1], scored, strict=True):
        np.testing.assert_allclose(back, there, atol=1e-5)
    assert score(params(), []) == []


def test_the_old_policy_stays_fixed_for_an_iteration_and_is_new_in_the_next():
    rows = [row for row in mixed_rows() if row.loss == LossKind.POLICY and not row.refined]
    rows = [row.replace(old_logp=logp, advantage=0.5) for row, logp in zip(rows, score(params(), rows), strict=True)]
    kept = [row.old_logp.copy() for row in rows]
    first, second = rows[:4], rows[4:]

    def mean_ratio(stats):
        return stats["initial/ratio_sum"] / stats["initial/tokens"]

    state, stats = update(first)
    # The policy that sampled is the one that is trained: ratio 1.
    np.testing.assert_allclose(mean_ratio(stats), 1, atol=1e-5)
    assert stats["logp_difference_sum"] < 1e-3
    state, stats = update(second, state=state)
    # It has moved by now, the old one has not.
    assert stats["logp_difference_sum"] > 0.1
    for row, old_logp in zip(rows, kept, strict=True):
        np.testing.assert_array_equal(row.old_logp, old_logp)
    # The next iteration scores under the new weights, and starts from ratio 1 again.
    again = [row.replace(old_logp=logp) for row, logp in zip(rows, score(state.params, rows), strict=True)]
    assert max(np.abs(a.old_logp - b.old_logp).max() for a, b in zip(again, rows, strict=True)) > 0.01
    _, stats = update(again, state=state)
    np.testing.assert_allclose(mean_ratio(stats), 1, atol=1e-5)


def test_an_update_reports_the_norm_before_clipping_and_counts_steps():
    optimizer = make_optimizer(learning_rate=1e-3, max_grad_norm=1e-3)
    state = fresh_state(optimizer)
    for step in range(2):
        assert state.step == step
        state, stats = update(mixed_rows(), state=state, optimizer=optimizer)
        assert stats["grad_norm"] > 1e-2
    assert state.step == 2
