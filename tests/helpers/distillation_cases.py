"""What the tests of training/test_distillation share with those that take longer."""

import dataclasses

import numpy as np
import train_step_cases as cases
from tiny import plain_logits
from train_step_cases import CONFIG, PLAIN, SHAPE, make_row, params

from cgrpo_jax.records import LossKind
from cgrpo_jax.training import distillation
from cgrpo_jax.training.packing import PackShape

C = 5
WITH_TEACHER = dataclasses.replace(SHAPE, top_tokens=C)
FEEDBACK_SHAPE = PackShape(num_token_rows=2, pack_length=40, num_slots=5)
SETTINGS = distillation.Distillation(C, FEEDBACK_SHAPE)


def rows(kind=LossKind.POLICY):
    """Rows of which some have a feedback prompt: two of one question, one alone, one of advantage 0, one masked."""
    rng = np.random.default_rng(3)
    feedback = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)  # noqa: E731
    found = [make_row(rng, 6, 8, feedback_ids=feedback(17), loss=kind)]
    found += [make_row(rng, found[0].context_ids, 5, feedback_ids=feedback(20), loss=kind)]
    found += [make_row(rng, found[0].context_ids, 7, loss=kind), make_row(rng, 3, 6, loss=kind)]
    found += [make_row(rng, 9, 4, feedback_ids=feedback(9), loss=kind, advantage=0.0)]
    found += [make_row(rng, 4, 3, feedback_ids=feedback(9), loss=kind, masked=True)]
    return found + [make_row(rng, 5, 6, loss=LossKind.NLL, advantage=0.5)]


def taught(given, weights=None, teacher=None, **keywords):
    """The rows with what the teacher says of them."""
    weights = params() if weights is None else weights
    return distillation.add_teacher(
        given,
        weights,
        weights if teacher is None else teacher,
        settings=SETTINGS,
        shape=SHAPE,
        max_length=8,
        config=CONFIG,
        temperature=PLAIN.temperature,
        **keywords,
    )


def gradient(given, settings, weights=None, **keywords):
    model, weights = cases.MODEL | {"shape": WITH_TEACHER}, params() if weights is None else weights
    return cases.accumulate_gradients(weights, given, settings=settings, num_questions=3, **model | keywords)


def plain_groups(weights, context, row):
    """`[T, C + 1]` log-probabilities of a row's tokens and of all others after a context, from whole logits."""
    tokens = np.concatenate([context, row.target_ids[:-1]])
    logits = plain_logits(weights, CONFIG, tokens)[len(context) - 1 :] / PLAIN.temperature
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, row.top_ids, axis=1)
    rest = np.log1p(-np.exp(chosen).sum(-1, keepdims=True))
    return np.concatenate([chosen, rest], axis=1)


def divergence_by_definition(name, logp, teacher_logp):
    p, q = np.exp(logp), np.exp(teacher_logp)
    if name == "reverse_kl":
        return np.sum(p * (logp - teacher_logp), axis=-1)
    m = (p + q) / 2
    return np.sum(p * np.log(p / m) + q * np.log(q / m), axis=-1) / 2


def loss_by_definition(weights, given, settings):
    """The whole loss in float64, row by row from whole logits: of the policy, of nll rows, of the distances."""
    counted = [row for row in given if row.loss != LossKind.NLL]
    tokens = sum(len(row.target_ids) for row in counted if not row.masked)
    # A row that is distilled alone counts as a row, and has no part in the policy's loss.
    as_policy = [
        dataclasses.replace(row, loss=LossKind.POLICY, masked=row.masked or row.loss == LossKind.DISTIL)
        if row.loss == LossKind.DISTIL
        else row
        for row in given
    ]
    plain = dataclasses.replace(settings, distil_coef=0.0)
    loss = cases.loss_by_definition(weights, as_policy, plain, num_questions=3)
    for row in counted:
        if row.teacher_logp is None or row.masked:
            continue
        logp = plain_groups(weights, row.context_ids, row)
        distance = divergence_by_definition(settings.divergence, logp, np.asarray(row.teacher_logp, np.float64))
        weight = {
            "constant": 1 / (len(counted) * settings.max_length),
            "paper": 1 / (3 * settings.num_responses),
            "token_mean": 1 / tokens,
            "sequence_mean": 1 / (len(counted) * len(row.target_ids)),
        }[settings.aggregate]
        loss += settings.distil_coef * weight * distance.sum()
    return loss
