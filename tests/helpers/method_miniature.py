"""A method of configs/methods in miniature: a run of it, and what each of its updates was given and came to.

Log-probabilities and entropies are those of `tiny.plain_logits`, in float64, not of the code that trains.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import re
import tempfile
import threading
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import rubric_cases
import tiny
import tiny_run
from chat_server import Server, good
from method_equations import DISTILLED, EQUATIONS, Batch, rco, values_of

from cgrpo_jax import sharding
from cgrpo_jax.records import LossKind, Stage
from cgrpo_jax.runs import conversion
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.training import train_step

STEP = 1e-5  # of the weights, in float64
# What a miniature has in the place of the paper's sizes. A rule writes critiques: the policy's own take longer.
ALWAYS = {
    "data.num_eval": 0,
    "num_iterations": 2,
    "critique.kind": "execution",
    "num_responses": 4,
    "optimizer.updates_per_batch": 1,
}
SMALL = ALWAYS | {"refine.num_kept": 1, "max_extra_questions": 4}
HINT = {
    "critique.kind": "hint",
    "prompts.hint": "{question}\nThe answer is {answer}.\nCheck.",
    "prompts.refine_with_hint": "{question}\nCritique: {hint}\nTry again.",
    "refine.num_kept": 3,
}
MORE = {
    "nurl": HINT,
    "rltf_sd": {"refine.num_kept": 4},
    "gspo": {"optimizer.updates_per_batch": 4},
    "sdpo": {"prompts.teacher": "{question}\nCritique: {critique}\nTry again."},
    "joint_critic": {"critique.kind": "cot", "critique.num_per_response": 2},
    "critique_coder": {"max_prompt_length": 48, "verdict_share": 0.25},
    "rubric": {"critique.kind": "checklist", "refine.max_pass": 0.5, "grader.timeout": 60.0},
}


def changes_of(name):
    """Returns the keys of a method's miniature: its values, but for sizes and the data's columns."""
    keep = {key: value for key, value in values_of(name).items() if key != "data.solution_key"}
    return keep | {key: value for key, value in SMALL.items() if key in keep or key in ALWAYS} | MORE.get(name, {})


def hint(handler):
    """Hints as the lessons speak: it tells the question's one step."""
    message = handler.body["messages"][-1]["content"]
    question, answer = re.fullmatch(r"(.*)\nThe answer is (\d+)\.\nCheck\.", message).groups()
    handler.send(good(f"Step 1 is wrong: {question}={answer}, not 0. Conclusion: wrong [END]"))


@contextlib.contextmanager
def scripted(reply):
    """An endpoint that a script answers at; yields its address."""
    with Server() as server:
        server.reply = reply
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.url
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


@functools.cache
def weak_model() -> str:
    """Returns the Hugging Face folder of a frozen model: the weights that every miniature begins from."""
    folder = tiny_run.shared() / "weak"
    if not folder.exists():
        conversion.export_hf(pathlib.Path(tiny_run.start()), folder)
    return str(folder)


@dataclasses.dataclass
class Update:
    """One update: its rows, the weights before it, and the program's own loss and gradient of it."""

    rows: list
    weights: dict
    loss: float
    gradient: dict


def train(name, workdir, critics=None, **more):
    """Trains a method's miniature; returns its folder, its configuration and its updates.

    Those of a critic that learns by RCO are added to `critics`.
    """
    tiny_run.start()  # whose warm start is none of these
    updates, given, apply, accumulate = [], [], train_step.update, train_step.accumulate_gradients

    def copied(tree):
        return jax.tree.map(np.array, tree)  # the buffers are donated

    def watch_gradient(params, rows, **keywords):
        grads, stats = accumulate(params, rows, **keywords)
        given.append((copied(params), copied(grads)))
        return grads, stats

    def watched(state, rows, **keywords):
        state, stats = apply(state, rows, **keywords)
        of_critic = rows[0].loss == LossKind.RCO
        loss = stats["rco_loss" if of_critic else "distil_loss" if name in DISTILLED else "policy_loss"]
        found = updates if not of_critic else [] if critics is None else critics
        found.append(Update(list(rows), given[-1][0], loss, given[-1][1]))
        return state, stats

    with contextlib.ExitStack() as stack:
        others = {"refiner.folder": weak_model()} if name == "weak_to_strong" else {}
        if name == "nurl":
            url = stack.enter_context(scripted(hint))
            others = {"critic.kind": "endpoint", "critic.endpoint.url": url, "critic.endpoint.model": "m"}
        if name == "rubric":
            url = stack.enter_context(scripted(rubric_cases.rule))
            others = rubric_cases.questions(stack.enter_context(tempfile.TemporaryDirectory()), url)
        stack.enter_context(mock.patch.object(train_step, "update", watched))
        stack.enter_context(mock.patch.object(train_step, "accumulate_gradients", watch_gradient))
        changes = changes_of(name) | others | more
        folder = tiny_run.run(workdir, changes)
    return folder, tiny_run.config(changes), updates


def groups_of(files):
    """Returns the rows of each question that stand in its group, of all iterations."""
    found = []
    for rows in files:
        for _, group in itertools.groupby(rows, lambda row: row.rollout.index.question):
            if placed := [row for row in group if row.place is not None]:
                found.append(sorted(placed, key=lambda row: row.place))
    return found


class Compared(NamedTuple):
    """An equation at an update, and its slope along the program's gradient, beside the program's own numbers."""

    value: float
    loss: float
    slope: float
    norm: float


def compared(name, folder, config, updates):
    """Yields of each update its equation and the program, which agree where value = -loss and slope = norm.

    The slope is (J(w + e d) - J(w - e d)) / 2e along d = -g / |g|, g the program's gradient of its loss: it is |g|
    where g has as much along d as the gradient of -J.
    """
    model = run_settings(config, sharding.one_device()).policy
    rollouts = (row for group in groups_of(tiny_run.rollouts(folder)) for row in group)
    equation, teacher = (EQUATIONS | DISTILLED)[name], None
    for update in updates:
        teacher = _averaged(teacher, update.weights, config.distil)
        texts = list(itertools.islice(rollouts, len(update.rows)))
        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(update.gradient)))
        here = _batch(config, model, update.rows, texts, update.weights, teacher)

        def along(step, update=update, texts=texts, here=here, norm=norm, teacher=teacher):
            moved = jax.tree.map(lambda w, g: np.float64(w) - step * g / norm, update.weights, update.gradient)
            there = _batch(config, model, update.rows, texts, moved, teacher)
            return equation(dataclasses.replace(there, held=here.ratio))

        slope = (along(STEP) - along(-STEP)) / (2 * STEP) if norm else 0.0
        yield Compared(equation(here), update.loss, slope, norm)


def critic_compared(config, updates):
    """Yields of each update of a critic what `compared` does of the policy's: `rco` of its rows, in float64."""
    model = run_settings(config, sharding.one_device()).policy
    for update in updates:
        mask = np.array([[t < len(row.target_ids) for t in range(config.critic.max_length)] for row in update.rows])
        ref, target = np.zeros(mask.shape), np.array([row.advantage for row in update.rows])
        for at, row in enumerate(update.rows):
            ref[at, : len(row.target_ids)] = row.ref_logp

        def value(weights, update=update, mask=mask, ref=ref, target=target):
            logp = np.zeros(mask.shape)
            for at, row in enumerate(update.rows):
                logp[at, : len(row.target_ids)] = _scored(weights, model, row)[0]
            return rco(logp, ref, target, mask)

        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(update.gradient)))

        def along(step, update=update, norm=norm, value=value):
            return value(jax.tree.map(lambda w, g: np.float64(w) - step * g / norm, update.weights, update.gradient))

        slope = (along(STEP) - along(-STEP)) / (2 * STEP)
        yield Compared(value(update.weights), update.loss, slope, norm)


def _averaged(teacher, weights, distil):
    """Returns the weights of the teacher, in float64, when these are about to learn: themselves, or their mean."""
    exact = jax.tree.map(np.float64, weights)
    if teacher is None or distil.teacher == "policy":
        return exact
    return jax.tree.map(lambda mean, new: mean + distil.average_rate * (new - mean), teacher, exact)


def _batch(config, model, rows, texts, weights, teacher):
    length = np.array([len(row.target_ids) for row in rows])
    shape = len(rows), int(length.max())
    arrays = collections.defaultdict(lambda: np.full(shape, -1.0), distance=np.zeros(shape))
    for at, (row, text) in enumerate(zip(rows, texts, strict=True)):
        np.testing.assert_array_equal(row.target_ids, text.rollout.token_ids)
        logp, entropy = _scored(weights, model, row)
        own = {"logp": logp, "old": row.old_logp, "entropy": entropy}
        own |= {} if row.ref_logp is None else {"ref": row.ref_logp}
        if row.feedback_ids is not None:
            own["distance"] = reverse_kl(
                _groups(weights, model, row, row.context_ids), _groups(teacher, model, row, row.feedback_ids)
            )
        for key, values in own.items():
            arrays[key][at, : length[at]] = values
    return Batch(
        reward=np.array([text.rollout.reward for text in texts]),
        question=np.array([text.rollout.index.question for text in texts]),
        length=length,
        refined=np.array([text.rollout.stage == Stage.REFINEMENT for text in texts]),
        truncated=np.array([text.rollout.truncated for text in texts]),
        **{key: arrays[key] for key in ("logp", "old", "ref", "entropy", "distance")},
        max_length=config.max_response_length,
        num_responses=config.num_responses,
        num_kept=config.refine.num_kept,
    )


def _scored(weights, model, row):
    """Returns log-probabilities and entropies of a row's targets, given its context."""
    logs = _logs(weights, model, row, row.context_ids)
    return logs[np.arange(len(row.target_ids)), row.target_ids], -np.sum(np.exp(logs) * logs, axis=-1)


def _groups(weights, model, row, context_ids):
    """Returns log-probabilities of the tokens that are compared, and of all others together, after a context."""
    logs = _logs(weights, model, row, context_ids)
    others = np.ones(logs.shape, bool)
    np.put_along_axis(others, row.top_ids, False, axis=1)
    rest = np.log(np.sum(np.exp(logs) * others, axis=1, keepdims=True))
    return np.concatenate([np.take_along_axis(logs, row.top_ids, axis=1), rest], axis=1)


def _logs(weights, model, row, context_ids):
    """Returns log-probabilities of all tokens where a row's targets are predicted, after a context."""
    tokens = np.concatenate([context_ids, row.target_ids])
    logits = tiny.plain_logits(weights, model, tokens)[len(context_ids) - 1 : -1]
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reverse_kl(logs, teacher_logs):
    """Returns KL(p || q) of the rows of two arrays of log-probabilities."""
    return np.sum(np.exp(logs) * (logs - teacher_logs), axis=-1)
