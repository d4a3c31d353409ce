"""The records that flow through a training step, in one direction.

    Problem -> Rollout (responses -> critiques -> refinements) -> Group -> TrainRow -> TrainBatch -> TrainState

Everything before `TrainBatch` lives on the host: a row is a Python object, its tokens are NumPy arrays that were
sampled once and are never decoded and encoded again. `TrainBatch` and `TrainState` are what the device sees.
"""

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

# NumPy on the host, where a batch is packed; JAX once it is on devices.
Array = np.ndarray | jax.Array


class Stage(enum.IntEnum):
    """What a rollout is. The number enters the row's random key, so it is part of the format."""

    RESPONSE = 0
    CRITIQUE = 1
    REFINEMENT = 2


class Author(enum.StrEnum):
    """Who wrote a rollout: the trained policy, a frozen critic or refiner, a rule, or the data set's own solution."""

    POLICY = "policy"
    CRITIC = "critic"
    REFINER = "refiner"
    RULE = "rule"
    SOLUTION = "solution"


class LossKind(enum.IntEnum):
    """How a train row enters the loss: by the policy objective, as negative log-likelihood, by RCO, in a DPO pair, or
    by nothing but its distance from a teacher that has seen feedback.
    """

    POLICY = 0
    NLL = 1
    RCO = 2
    DPO = 3
    DISTIL = 4


# What was said before a question: a role (system, user, assistant) and a text.
Turn = tuple[str, str]

VERDICT = "verdict"  # the grader of a problem that asks whether a response to another one is right


class Problem(struct.PyTreeNode):
    """One question with its gold answer.

    Attributes:
      index: position in the data set; identifies the problem in logs.
      question: the text that the policy sees; of a chat, the user's last turn.
      answer: the gold answer; the grader could read it when the data was loaded.
      solution: a worked solution if the data has one, else None. The ablation that inserts a correct sample into
        all-failed groups reads it, and a critic that may see it.
      source: name of the data set; a run may have several.
      grader: kind of grader that reads its answers; empty for the run's own.
      columns: the row's other columns, for a user's own reward function.
      turns: of a chat, what comes before the question, oldest first: a system turn, earlier questions and answers.
    """

    index: int = struct.field(pytree_node=False)
    question: str = struct.field(pytree_node=False)
    answer: str = struct.field(pytree_node=False)
    solution: str | None = struct.field(pytree_node=False, default=None)
    source: str = struct.field(pytree_node=False, default="")
    grader: str = struct.field(pytree_node=False, default="")
    # Not compared, and so not hashed: a problem can be a key, whatever its row holds.
    columns: Mapping[str, Any] = struct.field(pytree_node=False, default_factory=dict, compare=False)
    turns: tuple[Turn, ...] = struct.field(pytree_node=False, default=())


def has_system_turn(turns: Sequence[Turn]) -> bool:
    """Whether a chat opens with a system turn of its own; `developer` is what some models call it."""
    return bool(turns) and turns[0][0] in ("system", "developer")


def transcript(problem: Problem) -> str:
    """Returns a problem as text for those who judge its responses: the question, or the whole chat that it ends.

    Example:
      >>> transcript(Problem(0, "And 3 + 4?", "7", turns=(("user", "2 + 3?"), ("assistant", "5"))))
      'User: 2 + 3?\\n\\nAssistant: 5\\n\\nUser: And 3 + 4?'
    """
    if not problem.turns:
        return problem.question
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in (*problem.turns, ("user", problem.question)))


def problem_id(problem: Problem) -> str:
    """Returns what names a problem whatever file or order it came in: a hash of its source and question.

    The first 16 hexadecimal digits of the SHA-256 of source, a newline and question, in UTF-8; of a chat, another
    newline and its turns as JSON follow.

    Example:
      >>> problem_id(Problem(0, "What is 2 + 3?", "5", source="sums"))
      '454d1fab31c9ba01'
    """
    said = f"\n{json.dumps(problem.turns)}" if problem.turns else ""
    return hashlib.sha256(f"{problem.source}\n{problem.question}{said}".encode()).hexdigest()[:16]


class RowIndex(struct.PyTreeNode):
    """Where a row is in its iteration. All fields enter its random key (see `sampling.row_keys`).

    A response has critique = refinement = 0; a critique names its response; a refinement names both. The critique of a
    refinement, where the verdict is the reward, has refinement + 1 of what it criticises. `attempt` counts the retries
    of a critique whose verdict could not be used.
    """

    question: int = struct.field(pytree_node=False)
    response: int = struct.field(pytree_node=False, default=0)
    critique: int = struct.field(pytree_node=False, default=0)
    refinement: int = struct.field(pytree_node=False, default=0)
    stage: Stage = struct.field(pytree_node=False, default=Stage.RESPONSE)
    attempt: int = struct.field(pytree_node=False, default=0)


class Rollout(struct.PyTreeNode):
    """One generated text: a response, a critique or a refinement.

    Attributes:
      index: question, response, critique, refinement, stage and attempt of this row.
      author: who wrote it.
      weights_step: number of updates by its own optimiser, the policy's or its critic's, that the model which wrote it
        had seen: of weights that both share the policy's.
      prompt_ids: `[P]` int32, the prompt as it was fed to the model.
      token_ids: `[T]` int32, the sampled tokens, end-of-turn included when the row ended by itself.
      logp: `[T]` float32, log-probabilities (nats) of `token_ids` under `softmax(logits / temperature)`, untruncated.
      text: `token_ids` decoded for graders and people, without the end-of-turn token.
      opening: the end of the prompt from the tag on by which its template has opened a thinking part, such as
        "<think>" and a line end: the text goes on within it. Empty for none.
      truncated: the row reached its maximum length without an end-of-turn token.
      prompt_cut: what the prompt quotes was cut in its middle to fit.
      asked: of what an endpoint or a frozen refiner wrote, its prompt as text; empty where `prompt_ids` says it.
      parent: the row that this one answers (refinement -> critique -> response); None for a response.
      reward: 1.0 or 0.0 once scored, or what a user's own reward function gave; else None. Critiques carry none.
      rewards: names and values of the run's other rewards, which only add to the advantage; None for a null one.
      ungraded: the grader failed: the reward is 0, but says nothing. Of a critique: the endpoint that was asked for it
        gave no answer, and it only takes its place.
      extracted: the final answer as the grader read it, None if there was none or it was not looked for.
      feedback: what the grader found, such as the failing test and its output; "" until scored.
      verdict: for a critique, True if it says "right", False if "wrong", None if it can't be read.
      rejected: of a critique, the attempts before it whose verdict could not be used, oldest first.
      shown: of a critique that was made wrong on purpose, what a refinement sees in the place of its text; else None.
      feedback_ids: `[P]` int32, of a response that is distilled the prompt after which a teacher scores it: question,
        response and critique; else None.
    """

    index: RowIndex
    author: Author = struct.field(pytree_node=False)
    weights_step: int = struct.field(pytree_node=False)
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    logp: np.ndarray
    text: str = struct.field(pytree_node=False)
    opening: str = struct.field(pytree_node=False, default="")
    truncated: bool = struct.field(pytree_node=False, default=False)
    prompt_cut: bool = struct.field(pytree_node=False, default=False)
    asked: str = struct.field(pytree_node=False, default="")
    parent: "Rollout | None" = None
    reward: float | None = struct.field(pytree_node=False, default=None)
    rewards: tuple[tuple[str, float | None], ...] = struct.field(pytree_node=False, default=())
    ungraded: bool = struct.field(pytree_node=False, default=False)
    verdict: bool | None = struct.field(pytree_node=False, default=None)
    extracted: str | None = struct.field(pytree_node=False, default=None)
    feedback: str = struct.field(pytree_node=False, default="")
    rejected: "tuple[Rollout, ...]" = ()
    shown: str | None = struct.field(pytree_node=False, default=None)
    feedback_ids: np.ndarray | None = None

    @property
    def stage(self) -> Stage:
        return self.index.stage

    @property
    def whole_text(self) -> str:
        """The text with the thinking tag that its prompt ends in: what others read."""
        return self.opening + self.text


class TrainRow(struct.PyTreeNode):
    """One row to learn from, whatever its origin.

    Attributes:
      context_ids: `[P]` int32, what the row is conditioned on. For a refinement this is the original prompt, never
        the critique.
      target_ids: `[T]` int32, the tokens to learn.
      old_logp: `[T]` float32, log-probabilities under the policy that sampled the row; zeros where there is
        none. Of a refined row the sampler's, with the critique in view, unless the trainer scored it again; the ratio
        `importance` alone reads it.
      advantage: group-relative advantage (policy rows), weight (nll rows; of a dpo pair, the same in both), or
        CU/beta - log Z (rco rows).
      refined: the row uses the ratio of the refined rows, pi / (pi + gamma) by default.
      loss: how the row enters the loss.
      ref_logp: `[T]` float32, log-probabilities under the reference; None where no loss needs it.
      sampler_logp: `[T]` float32, log-probabilities in the sampler, where `old_logp` is the trainer's and both are
        needed; else None.
      masked: no token of it trains, though it was in its group's baseline and is counted as a row.
      pair: of a dpo row, the number of its pair within an update, from 1: positive of the chosen one, negative of the
        rejected one; else 0.
      counted: `[T]` bool, of a chat in one row, the targets that the loss counts: the assistant's, not what users say
        between; None counts all.
      feedback_ids: `[P]` int32, what a teacher is conditioned on that scores the row's targets; None for no teacher.
      top_ids: `[T, C]` int32, at each target the tokens that policy and teacher are compared by; None likewise.
      teacher_logp: `[T, C + 1]` float32, the teacher's log-probabilities of these, and of all others together.
    """

    context_ids: np.ndarray
    target_ids: np.ndarray
    old_logp: np.ndarray
    advantage: float = struct.field(pytree_node=False)
    refined: bool = struct.field(pytree_node=False, default=False)
    loss: LossKind = struct.field(pytree_node=False, default=LossKind.POLICY)
    ref_logp: np.ndarray | None = None
    sampler_logp: np.ndarray | None = None
    masked: bool = struct.field(pytree_node=False, default=False)
    pair: int = struct.field(pytree_node=False, default=0)
    counted: np.ndarray | None = None
    feedback_ids: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    teacher_logp: np.ndarray | None = None


class TrainBatch(struct.PyTreeNode):
    """Train rows packed into token rows of one static shape: R rows of S tokens, B train rows of up to T targets.

    A packed row holds several train rows one after the other, each a segment with its own positions; those with the
    same context follow a segment that holds all of it but its last token, their shared prompt. Targets are found
    through indices, so nothing depends on where a row was packed: the log-probability of target t of row b is that of
    `target_BT[b, t]`, read from the hidden state at `(row_B[b], start_B[b] + t)`.

    Attributes:
      tokens_RS: int32, input tokens.
      positions_RS: int32, rotary positions, from 0 in each shared prompt, and on from its end in each of its rows.
      segments_RS: int32, 1, 2, ... within a packed row; 0 is padding, which nothing attends to.
      prompts_RS: int32, the segment that a token sees besides its own: the shared prompt of its row; 0 for none.
      row_B: int32, packed row of each train row.
      start_B: int32, packed position whose hidden state predicts the row's first target.
      length_B: int32, number of targets; 0 for an empty slot.
      target_BT: int32.
      old_logp_BT: float32.
      ref_logp_BT: float32, zeros when no reference is used.
      advantage_B: float32, advantage or nll weight.
      refined_B: bool.
      nll_B: bool, True for `LossKind.NLL`.
      sampler_logp_BT: float32; None where nothing weighs by it.
      rco_B: bool, True for `LossKind.RCO`; as the next two, None where a batch is not made for these kinds.
      pair_B: int32, +p of the chosen row and -p of the rejected one of pair p = 1, 2, ...; 0 for none.
      counted_BT: bool, the targets that the loss counts.
      distil_B: bool, the rows that have a teacher; this and the next ones are None where none has.
      alone_B: bool, True for `LossKind.DISTIL`.
      top_ids_RSC: int32, the tokens that policy and teacher are compared by, at the position that predicts a target.
      teacher_logp_RSG: float32, the teacher's log-probabilities of these, and of all others together (G = C + 1).
    """

    tokens_RS: Array
    positions_RS: Array
    segments_RS: Array
    prompts_RS: Array
    row_B: Array
    start_B: Array
    length_B: Array
    target_BT: Array
    old_logp_BT: Array
    ref_logp_BT: Array
    advantage_B: Array
    refined_B: Array
    nll_B: Array
    sampler_logp_BT: Array | None = None
    rco_B: Array | None = None
    pair_B: Array | None = None
    counted_BT: Array | None = None
    distil_B: Array | None = None
    alone_B: Array | None = None
    top_ids_RSC: Array | None = None
    teacher_logp_RSG: Array | None = None


class TrainState(struct.PyTreeNode):
    """A trainable model: what an update reads and writes.

    Attributes:
      step: number of optimiser updates applied.
      params: pytree of weights.
      opt_state: optax state; None for a frozen model.
      average: exponential mean of `params` over the updates; None where nothing asks for it.
      critic: of a policy, the state of the critic that is trained beside it, whose params are None where it trains the
        policy's own; None for no such critic.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    average: Any = None
    critic: "TrainState | None" = None
