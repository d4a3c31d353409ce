"""Divergences from a teacher by hand, gradients by finite differences, in float64; exactly 0 where both are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.ratios import DIVERGENCES, distance

each = pytest.mark.parametrize("name", DIVERGENCES)


def log(*rows):
    return np.log(np.array(rows, np.float64))


def plain(name, logits, teacher_logp):
    p, q = np.exp(logits - np.log(np.exp(logits).sum())), np.exp(teacher_logp)
    m = (p + q) / 2
    if name == "reverse_kl":
        return np.sum(p * np.log(p / q))
    return np.sum(p * np.log(p / m) + q * np.log(q / m)) / 2


def test_values_by_hand():
    # Of p = (1/2, 1/2) and q = (1/4, 3/4): log 2 / 2 + log(2/3) / 2; and m = (3/8, 5/8).
    p, q = log([0.5, 0.5]), log([0.25, 0.75])
    with jax.enable_x64(True):
        np.testing.assert_allclose(distance(p, q, "reverse_kl"), [0.5 * np.log(4 / 3)], rtol=1e-14)
        above = 0.5 * np.log(4 / 3) + 0.5 * np.log(4 / 5)  # of p above m
        teacher = 0.25 * np.log(2 / 3) + 0.75 * np.log(6 / 5)
        np.testing.assert_allclose(distance(p, q, "jensen_shannon"), [(above + teacher) / 2], rtol=1e-14)


def test_gradients_by_hand():
    # d z_j = p_j (s_j - sum p s): of reverse KL s = (log 2, log 2/3), so d z = +-(log 3) / 4.
    with jax.enable_x64(True):
        found = jax.grad(lambda z: distance(z, log([0.25, 0.75])[0], "reverse_kl"))(log([0.5, 0.5])[0])
        np.testing.assert_allclose(found, [np.log(3) / 4, -np.log(3) / 4], rtol=1e-14)
        # Of Jensen-Shannon s = (log 4/3, log 4/5) / 2, so d z = +-(log 5/3) / 8.
        found = jax.grad(lambda z: distance(z, log([0.25, 0.75])[0], "jensen_shannon"))(log([0.5, 0.5])[0])
        np.testing.assert_allclose(found, [np.log(5 / 3) / 8, -np.log(5 / 3) / 8], rtol=1e-14)


@each
def test_against_finite_differences(name):
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(0, 2, 6), rng.normal(0, 2, 6)
    teacher -= np.log(np.exp(teacher).sum())
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(lambda z: distance(z, teacher, name))(logits)
    np.testing.assert_allclose(value, plain(name, logits, teacher), rtol=1e-12)
    steps = 1e-6 * np.eye(6)
    slopes = [(plain(name, logits + step, teacher) - plain(name, logits - step, teacher)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-9)


@each
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_equal_distributions_have_exactly_no_distance_and_no_gradient(name, transform):
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 5, (100, 21)), jnp.float32)
    teacher = transform(jax.nn.log_softmax)(logits)
    gradient = transform(jax.grad(lambda z: distance(z, teacher, name).sum()))(logits)
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    np.testing.assert_array_equal(distance(logits, teacher, name), np.zeros(100))


@each
def test_what_is_nearly_impossible_stays_finite(name):
    logits = jnp.array([[0.0, -200.0, 5.0], [300.0, 0.0, -300.0]])
    teacher = jax.nn.log_softmax(jnp.array([[-300.0, 0.0, 7.0], [0.0, 300.0, 9.0]]))
    value, gradient = jax.value_and_grad(lambda z: distance(z, teacher, name).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert name == "reverse_kl" or (distance(logits, teacher, name) <= np.log(2) * (1 + 1e-6)).all()
