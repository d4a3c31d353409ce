"""The equations of the docstrings in configs/methods, in NumPy: what each maximises, of the rows of some questions."""

import dataclasses
import sys

import numpy as np
import paths

from cgrpo_jax import objective

FILES = {path.stem: path for path in sorted((paths.CONFIGS / "methods").glob("*.py"))}
EPSILON = 1e-6


def values_of(name):
    """Returns the VALUES of a file of configs/methods."""
    scope, before = {}, set(sys.modules)
    exec(compile(FILES[name].read_text(), str(FILES[name]), "exec"), scope)
    for module in set(sys.modules) - before:
        if module.partition(".")[0] == "configs":  # another folder of that name may be asked for later
            del sys.modules[module]
    return scope["VALUES"]


@dataclasses.dataclass
class Batch:
    """Rows as a method has them: rewards, lengths and what they are, and logs of probabilities `[B, T]`.

    `question` is whose group a row is in, `num_responses` and `num_kept` are the paper's n and k. `held` is the ratio
    where a gradient holds it fixed, None for as it is. `distance` is from a teacher, 0 of what none scored.
    """

    reward: np.ndarray
    question: np.ndarray
    length: np.ndarray
    refined: np.ndarray
    truncated: np.ndarray
    logp: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    entropy: np.ndarray
    max_length: int
    num_responses: int
    num_kept: int
    held: np.ndarray | None = None
    distance: np.ndarray | None = None

    @property
    def mask(self):
        return np.arange(self.logp.shape[1]) < self.length[:, None]

    @property
    def ratio(self):
        return np.exp(self.logp - self.old)

    def deviations(self, reward=None, *, scale=False, initial=False):
        """A of each row, as a column: over its question's rows, or its responses alone."""
        reward = self.reward if reward is None else reward
        advantage = np.zeros(len(reward))
        for one in set(self.question):
            own = self.question == one
            of = reward[own & ~self.refined] if initial else reward[own]
            advantage[own] = (reward[own] - of.mean()) / (of.std(ddof=1) + EPSILON if scale else 1)
        return advantage[:, None]

    @property
    def is_mixed(self):
        """Whether the rewards of a row's question are not all equal."""
        return np.array([len(set(self.reward[self.question == one])) > 1 for one in self.question])


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


def r1_grpo(b):
    return mean_a_row(b, clipped(b.ratio, b.deviations(scale=True)) - 0.001 * k3(b))


def dr_grpo(b):
    return constant(b, clipped(b.ratio, b.deviations()))


def dapo(b):
    buffer = 0.2 * b.max_length
    penalty = 0.5 * np.clip((b.max_length - buffer - b.length) / buffer, -1, 0)
    advantage = b.deviations(b.reward + b.is_mixed * penalty, scale=True)
    return mean_a_token(b, clipped(b.ratio, advantage, high=0.28), b.mask & ~b.truncated[:, None])


def critique_coder(b):
    return mean_a_token(b, clipped(b.ratio, b.deviations(scale=True), high=0.3), b.mask & ~b.truncated[:, None])


def gspo(b):
    mean = np.sum((b.logp - b.old) * b.mask, axis=1) / b.length
    return np.mean(clipped(np.exp(mean)[:, None], b.deviations(scale=True), 3e-4, 4e-4))


def cispo(b):
    held = b.ratio if b.held is None else b.held
    return mean_a_token(b, np.minimum(held, 5) * b.deviations(scale=True) * b.logp, b.mask)


def critique_grpo(b):
    advantage, refined = b.deviations(), b.refined[:, None]
    first = np.sum(clipped(b.ratio, advantage) * (b.mask & ~refined)) / b.num_responses
    then = np.sum(clipped(shaped(b), advantage) * (b.mask & refined)) / b.num_kept
    return (first + then) / len(set(b.question))


def rco(logp, ref, target, mask):
    """What a critic's update maximises, of `[B, T]` log-probabilities and `[B]` targets v."""
    return -np.mean((np.sum((logp - ref) * mask, axis=1) - target) ** 2) / 2


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


def sdpo(b):
    return -np.sum(b.distance * (b.mask & (b.reward < 1)[:, None])) / b.length.sum()


EQUATIONS = {
    "r1_grpo": r1_grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "critique_coder": critique_coder,
    "critique_grpo": critique_grpo,
    "critique_grpo_release": critique_grpo_release,
    "joint_critic": critique_grpo,
    "ladder_1": r1_grpo,
    "ladder_2": dr_grpo,
    "ladder_3": unshaped,
    "ladder_4": unshaped,
    "ladder_5": ladder_5,
    "luffy": luffy,
    "rltf_sd": rltf_sd,
    "nurl": nurl,
    "rubric": ladder_5,
    "weak_to_strong": ladder_5,
}
# Of distances from a teacher, in the place of ratios.
DISTILLED = {"sdpo": sdpo}


def loss_of(loss, rows, logp, old, *, ref, entropy, sampler=None):
    """Returns `objective.policy_loss` of a question's train rows by a run's `LossSettings`; the others are `[B, T]`."""
    length = np.array([len(one.target_ids) for one in rows])
    mask = (np.arange(logp.shape[1]) < length[:, None]) & ~np.array([[one.masked] for one in rows])
    value, _ = objective.policy_loss(
        np.asarray(logp, np.float32),
        np.asarray(old, np.float32),
        np.array([one.advantage for one in rows], np.float32),
        mask,
        np.array([one.refined for one in rows]),
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
        ref_logp_BT=np.asarray(ref, np.float32),
        kl_coef=loss.kl_coef,
        kl=loss.kl,
        entropy_BT=np.asarray(entropy, np.float32),
        entropy_coef=loss.entropy_coef,
        sampler_logp_BT=np.asarray(old if sampler is None else sampler, np.float32),
        tis_cap=loss.tis_cap,
        tis_level=loss.tis_level,
    )
    return value
