"""Each file of configs/methods changes values of the paper's configuration alone, and its loss is its equation's."""

import dataclasses

import ml_collections
import numpy as np
import paths
import pytest
from scripted_rollouts import response, row

from cgrpo_jax import groups, objective
from cgrpo_jax.records import LossKind, RowIndex, Stage
from cgrpo_jax.runs import build_training, settings, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.training import distillation, packing

FILES = {path.stem: path for path in sorted((paths.CONFIGS / "methods").glob("*.py"))}
EPSILON = 1e-6


@dataclasses.dataclass
class Batch:
    """A question's rows as a method has them: rewards, lengths and what they are, and logs of probabilities."""

    reward: np.ndarray
    length: np.ndarray
    refined: np.ndarray
    truncated: np.ndarray
    logp: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    entropy: np.ndarray
    max_length: int

    @property
    def mask(self):
        return np.arange(self.logp.shape[1]) < self.length[:, None]

    @property
    def ratio(self):
        return np.exp(self.logp - self.old)

    def deviations(self, reward=None, *, scale=False, initial=False):
        """A of each row, as a column."""
        reward = self.reward if reward is None else reward
        of = reward[~self.refined] if initial else reward
        advantage = (reward - of.mean()) / (of.std(ddof=1) + EPSILON if scale else 1)
        return advantage[:, None]


def clipped(ratio, advantage, low=0.2, high=0.2):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def k3(b):
    return np.exp(b.ref - b.logp) - (b.ref - b.logp) - 1


def shaped(b):
    return np.exp(b.logp) / (np.exp(b.logp) + 0.1)


def mean_a_row(b, term):
    return np.mean([np.sum(t * m) / m.sum() for t, m in zip(term, b.mask, strict=True)])


def mean_a_token(b, term, mask):
    return np.sum(term * mask) / mask.sum()


def constant(b, term):
    return np.sum(term * b.mask) / (len(term) * b.max_length)


# --- the equations of the files' docstrings -----------------------------------------------------------------------


def r1_grpo(b):
    return mean_a_row(b, clipped(b.ratio, b.deviations(scale=True)) - 0.001 * k3(b))


def dr_grpo(b):
    return constant(b, clipped(b.ratio, b.deviations()))


def dapo(b):
    buffer = 0.2 * b.max_length
    reward = b.reward + 0.5 * np.clip((b.max_length - buffer - b.length) / buffer, -1, 0)
    advantage = b.deviations(reward, scale=True)
    return mean_a_token(b, clipped(b.ratio, advantage, high=0.28), b.mask & ~b.truncated[:, None])


def gspo(b):
    mean = np.sum((b.logp - b.old) * b.mask, axis=1) / b.length
    return np.mean(clipped(np.exp(mean)[:, None], b.deviations(scale=True), 3e-4, 4e-4))


def cispo(b):
    return mean_a_token(b, np.minimum(b.ratio, 5) * b.deviations(scale=True) * b.logp, b.mask)


def critique_grpo(b):
    advantage, refined = b.deviations(), b.refined[:, None]
    first = np.sum(clipped(b.ratio, advantage) * (b.mask & ~refined)) / 7
    return first + np.sum(clipped(shaped(b), advantage) * (b.mask & refined)) / 1


def critique_grpo_release(b):
    weighed = np.where(b.refined[:, None], shaped(b), b.ratio)
    return constant(b, weighed * b.deviations(scale=True) + 2e-4 * b.entropy)


def unshaped(b):
    return constant(b, clipped(b.ratio, b.deviations()))


def ladder_5(b):
    initial = clipped(b.ratio, b.deviations())
    return constant(b, np.where(b.refined[:, None], shaped(b) * b.deviations(), initial))


def luffy(b):
    return constant(b, np.where(b.refined[:, None], shaped(b), b.ratio) * b.deviations() + 2e-4 * b.entropy)


def rltf_sd(b):
    advantage = b.deviations(initial=True)
    return constant(b, np.where(b.refined[:, None], advantage * b.logp, clipped(b.ratio, advantage)))


def nurl(b):
    return mean_a_row(b, clipped(b.ratio, b.deviations(scale=True)))


EQUATIONS = {
    "r1_grpo": r1_grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "critique_grpo": critique_grpo,
    "critique_grpo_release": critique_grpo_release,
    "ladder_1": r1_grpo,
    "ladder_2": dr_grpo,
    "ladder_3": unshaped,
    "ladder_4": unshaped,
    "ladder_5": ladder_5,
    "luffy": luffy,
    "rltf_sd": rltf_sd,
    "nurl": nurl,
    "weak_to_strong": ladder_5,
}
DISTILLED = ("sdpo",)  # which have no ratio: their loss is below
# Rows of a question that all responses fail: initial ones, and refined ones.
ROWS = {
    **dict.fromkeys(EQUATIONS, (7, 1)),
    **dict.fromkeys(("r1_grpo", "dr_grpo", "gspo", "cispo", "ladder_1", "ladder_2"), (8, 0)),
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
        length=length,
        refined=np.array([one.refined for one in trained]),
        truncated=np.array([one.truncated for one in rows]),
        logp=np.minimum(old + rng.normal(0, 1, shape), -1e-3),
        old=old,
        ref=old + rng.normal(0, 0.5, shape),
        entropy=rng.uniform(0, 2, shape),
        max_length=config.max_response_length,
    )


def test_every_file_has_its_equation():
    assert FILES.keys() == {*EQUATIONS, *DISTILLED}


@pytest.mark.parametrize("name", FILES)
def test_a_file_changes_values_of_the_papers_configuration_and_nothing_else(name):
    module = config_lib.load(FILES[name])
    values = _values(FILES[name])
    expected = config_lib.load(paths.CONFIGS / "paper.py")
    expected.update_from_flattened_dict(values)
    assert isinstance(module, ml_collections.ConfigDict) and module.to_dict() == expected.to_dict()
    validate.check(config(name))
    text = FILES[name].read_text()
    assert "arXiv" in text.split('"""')[1] and "J = " in text or "A as before" in text


@pytest.mark.parametrize("base", sorted(path.stem for path in paths.CONFIGS.glob("*.py") if path.stem != "__init__"))
def test_the_values_go_with_every_configuration_whose_questions_four_minibatches_divide(base):
    for name, path in FILES.items():
        c = config_lib.load(paths.CONFIGS / f"{base}.py")
        c.update_from_flattened_dict(_values(path))
        found = list(validate.violations(config_lib.freeze(c)))
        divides = name != "gspo" or c.questions_per_iteration % 4 == 0
        assert not found if divides else len(found) == 1 and "does not divide" in found[0]


@pytest.mark.parametrize("step, name", [("ladder_1", "r1_grpo"), ("ladder_2", "dr_grpo")])
def test_the_first_steps_of_the_ladder_are_the_baselines(step, name):
    assert _values(FILES[step]) == _values(FILES[name])


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_loss_is_the_equations(name):
    c = config(name)
    grouping, loss = settings.grouping(c), build_training.loss_settings(c)
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
    value, _ = objective.policy_loss(
        *(np.asarray(x, np.float32) for x in (b.logp, b.old, [one.advantage for one in trained])),
        b.mask & ~np.array([[one.masked] for one in trained]),
        b.refined,
        initial_ratio=loss.initial_ratio,
        refined_ratio=loss.refined_ratio,
        gamma=loss.gamma,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        clip_initial=loss.clip_initial,
        clip_refined=loss.clip_refined,
        aggregate=loss.aggregate,
        max_length=loss.max_length,
        num_questions=1,
        num_responses=loss.num_responses,
        num_refinements=loss.num_refinements,
        ref_logp_BT=np.asarray(b.ref, np.float32) if loss.kl_coef else None,
        kl_coef=loss.kl_coef,
        kl=loss.kl,
        entropy_BT=np.asarray(b.entropy, np.float32),
        entropy_coef=loss.entropy_coef,
    )
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


def _values(path):
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope["VALUES"]
