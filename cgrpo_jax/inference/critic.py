"""Who criticises a response: a rule, or a model that is asked until its verdict can be used. The algorithm's step 2."""

import collections
import dataclasses
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from cgrpo_jax.critiques import texts as texts_lib
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.critiques.step_check.equations import StepError
from cgrpo_jax.inference.generators import Generator, RemoteGenerator
from cgrpo_jax.inference.orchestrator import gather
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage
from cgrpo_jax.rewards.thinking import after_thinking

Counts = collections.Counter
CountedRows = tuple[list[Rollout], Counts]  # rows, and counts for the metrics


@dataclasses.dataclass(frozen=True)
class Critic:
    """Who criticises responses, and by what rules.

    Attributes:
      kind: `indicative`, `indicative_gt`, `execution`, `checklist`, `cot`, `hint`; `none`: refine without a critique.
      generator: the model that writes `cot` critiques and hints, the policy itself or a frozen critic; else None.
      see_answer: put the reference answer into the `cot` critic's prompt.
      see_solution: put the reference solution into it too.
      grader: kind of the run's grader. `execution` of a program is what its grader found: the test that fails.
      check_steps: `(question, response) -> StepError | None`, what `execution` of any other response runs.
      reveal_value: `execution` and `checklist` name the right value of a wrong step or test, not only the step or test.
      max_retries: further attempts at a `cot` critique whose verdict can't be used, or at a hint that says nothing.
      max_length: tokens that a `cot` critique may have.
      pass_threshold: reward from which a response is right.
      corruption: a name of `texts.CORRUPTIONS`: critiques are shown wrong on purpose; `texts.ANOTHER`: one of `others`
        is shown in their place; `none` for as they are.
      corrupted_share: of the critiques, drawn at random.
      others: what was said of other responses.
      as_written: show each `cot` critique as it was written first, whatever its verdict: the critic learns from what it
        achieves.
    """

    kind: str
    generator: Generator | RemoteGenerator | None = None
    see_answer: bool = False
    see_solution: bool = False
    grader: str = ""
    check_steps: Callable[[str, str], StepError | None] | None = None
    reveal_value: bool = True
    max_retries: int = 2
    max_length: int = 512
    pass_threshold: float = 1.0
    corruption: str = "none"
    corrupted_share: float = 1.0
    others: Sequence[str] = ()
    as_written: bool = False

    @property
    def shows(self) -> str:
        """What a refinement sees besides the question, a name of `rollout.SHOWN`."""
        return {"none": "nothing", "hint": "hint"}.get(self.kind, "critique")


async def critique(
    critic: Critic,
    rollouts: Sequence[Rollout],
    problem: Problem,
    *,
    encode: Callable[[str], list[int]],
    num_critiques: int = 1,
) -> CountedRows:
    """Critiques responses (or refinements) to a problem that have been scored.

    A `cot` critique whose verdict is malformed, or disagrees with the reward, is written again with another random
    key, and after `max_retries` replaced by the indicative one; what was rejected stays with the one that takes its
    place. So is a hint that says nothing, cut off within its thinking, say; the word none replaces it. A row without a
    reward (unsupervised variant), or whose grader failed, accepts any verdict that can be read.

    Args:
      critic: who criticises.
      rollouts: what to critique; becomes each critique's `parent`.
      problem: what they answer.
      encode: text to token ids, for critiques that no model wrote.
      num_critiques: critiques for each row.

    Returns:
      (critiques in the order of `rollouts`, `num_critiques` each; counts for the metrics)
    """
    done = await gather(
        [
            _one(critic, row, _critique_index(row, c, num_critiques), problem, encode)
            for row in rollouts
            for c in range(num_critiques)
        ]
    )
    return [row for row, _ in done], sum((counts for _, counts in done), collections.Counter())


async def critique_once(
    critic: Critic,
    row: Rollout,
    problem: Problem,
    *,
    number: int,
    num_critiques: int,
    encode: Callable[[str], list[int]],
) -> Rollout:
    """Returns a critique of a scored row as its author writes it first, with the verdict that it has.

    It is not written again, replaced, or made wrong on purpose, as `critique` does: the critic is measured, or trained.
    What an endpoint leaves out has no text, and is `ungraded`.

    Args:
      critic: who criticises.
      row: what is criticised.
      problem: what the row answers.
      number: of the critique, of `num_critiques` of the row; it enters the random key.
      num_critiques: of each row.
      encode: text to token ids, for critiques that no model writes.
    """
    index = _critique_index(row, number, num_critiques)
    if critic.kind not in _ASKED:
        written, _ = await _critique_one(critic, row, index, problem, encode)
        return written
    written, _ = await _ASKED[critic.kind].write(critic, problem, row, index)
    return _left_out(row, index) if written is None else written


def _left_out(row: Rollout, index: RowIndex) -> Rollout:
    none = np.zeros(0, np.int32)
    return Rollout(
        index=index,
        author=Author.CRITIC,
        weights_step=0,
        prompt_ids=none,
        token_ids=none,
        logp=np.zeros(0, np.float32),
        text="",
        parent=row,
        ungraded=True,
    )


async def _one(
    critic: Critic, row: Rollout, index: RowIndex, problem: Problem, encode: Callable[[str], list[int]]
) -> tuple[Rollout, Counts]:
    written, counts = await _critique_one(critic, row, index, problem, encode)
    return _as_shown(critic, written), counts


async def _critique_one(
    critic: Critic, row: Rollout, index: RowIndex, problem: Problem, encode: Callable[[str], list[int]]
) -> tuple[Rollout, Counts]:
    counts: Counts = collections.Counter(critiqued=1)
    unanswered = False
    rejected: list[Rollout] = []
    if critic.kind in _ASKED:
        asked = _ASKED[critic.kind]
        for attempt in range(critic.max_retries + 1):
            written, cut = await asked.write(critic, problem, row, index.replace(attempt=attempt))
            counts["prompts_cut"] += cut
            counts["attempts"] += 1
            if written is None:  # an endpoint that has given no answer has had its retries
                counts["unanswered"] += 1
                unanswered = True
                break
            counts["tokens"] += len(written.token_ids)
            if attempt == 0:
                counts.update(asked.counts(written, row, critic.pass_threshold))
            if critic.as_written or asked.usable(written, row, critic.pass_threshold):
                return written.replace(rejected=tuple(rejected)), counts
            rejected.append(written)
        counts["fallbacks"] += 1
    # What takes the place of attempts counts as the next one: no two rows of an iteration have the same index.
    replacing = _by_rule(critic, row, problem, index.replace(attempt=len(rejected)), encode)
    return replacing.replace(ungraded=unanswered, rejected=tuple(rejected)), counts


def _as_shown(critic: Critic, row: Rollout) -> Rollout:
    """Returns a critique as it is, or of those that are drawn a wrong one; (seed, iteration, row) decide the draw."""
    corrupt = texts_lib.CORRUPTIONS.get(critic.corruption)
    if critic.corruption == texts_lib.ANOTHER:
        corrupt = lambda said, rng: rng.choice(critic.others)  # noqa: E731
    if corrupt is None:
        return row
    generator = critic.generator
    key = (generator.seed, generator.iteration) if generator else (0, 0)
    rng = random.Random(f"corrupt {key} {dataclasses.astuple(row.index.replace(attempt=0))}")
    return row.replace(shown=corrupt(said_of(row), rng)) if rng.random() < critic.corrupted_share else row


def said_of(critique: Rollout) -> str:
    """Returns what a refinement sees of a critique: all that a rule says, of a model what comes after its thinking."""
    if critique.shown is not None:
        return critique.shown
    if critique.author == Author.RULE:  # which may quote a response
        return critique.text
    return after_thinking(critique.text, opened=bool(critique.opening))


def critiques_of(rows: Sequence[Rollout], critiques: Sequence[Rollout]) -> list[Rollout]:
    """Returns those critiques that are of the given responses, with these (scored since) as their parents."""
    wanted = {(row.index.question, row.index.response): row for row in rows}
    at = [(critique.index.question, critique.index.response) for critique in critiques]
    return [one.replace(parent=wanted[key]) for one, key in zip(critiques, at, strict=True) if key in wanted]


# Which responses with a critique a teacher scores that has seen it, by whether they pass.
TAUGHT: dict[str, Callable[[bool], bool]] = {
    "none": lambda passed: False,
    "failed": lambda passed: not passed,
    "all": lambda passed: True,
}


def with_feedback(
    responses: Sequence[Rollout],
    critiques: Sequence[Rollout],
    problem: Problem,
    prompts: Prompts,
    *,
    taught: str,
    pass_threshold: float,
) -> CountedRows:
    """Returns the responses, those that are distilled with the prompt of their teacher; and counts.

    The teacher (SDPO, arXiv 2601.20802) sees question, critique and, by a refinement's prompt, the response, and scores
    the response's own tokens. Departure: a sibling's right answer is not in its prompt.

    Args:
      responses: scored; those without a verdict, or a critique, have no teacher.
      critiques: in the order of their indices; of several of a response the first counts.
      problem: what all of them are about.
      prompts: the policy's.
      taught: which responses, a name of `TAUGHT`.
      pass_threshold: reward from which a response is right.
    """
    first: dict[int, Rollout] = {}
    for one in critiques:
        if not one.index.refinement:
            first.setdefault(one.index.response, one)

    counts: Counts = collections.Counter()

    def with_prompt(row: Rollout) -> Rollout:
        feedback = first.get(row.index.response)
        passed = _passed(row, pass_threshold)
        if feedback is None or passed is None or not TAUGHT[taught](passed):
            return row
        ids, cut = prompts.for_teacher(problem.question, row.whole_text, said_of(feedback), problem.turns)
        counts["feedback_prompts_cut"] += cut
        return row.replace(feedback_ids=ids)

    return [with_prompt(row) for row in responses], counts


def _critique_index(row: Rollout, c: int, num_critiques: int) -> RowIndex:
    # A refinement's critique counts its refinement from 1, so that its key is not that of its response's critique, and
    # keeps apart refinements that followed different critiques of one response.
    refinement = row.index.refinement + 1 if row.stage == Stage.REFINEMENT else 0
    critique = row.index.critique * num_critiques + c
    return row.index.replace(critique=critique, refinement=refinement, stage=Stage.CRITIQUE, attempt=0)


def _passed(row: Rollout, pass_threshold: float) -> bool | None:
    """Is a row right? None where that is not known."""
    return None if row.reward is None or row.ungraded else row.reward >= pass_threshold


def _usable(critique: Rollout, row: Rollout, pass_threshold: float) -> bool:
    return critique.verdict is not None and _passed(row, pass_threshold) in (None, critique.verdict)


def _verdict_counts(critique: Rollout, row: Rollout, pass_threshold: float) -> Counts:
    """Counts a first attempt's verdict on a row against the verifier's."""
    comparable = int(not row.ungraded)
    if critique.verdict is None:
        return collections.Counter(malformed=1, comparable=comparable)
    passed = _passed(row, pass_threshold)
    if passed is None:
        return collections.Counter(valid=comparable, comparable=comparable)
    return collections.Counter(
        comparable=1,
        valid=int(critique.verdict == passed),
        false_right=int(critique.verdict and not passed),
        false_wrong=int(passed and not critique.verdict),
        judged_failed=int(not passed),
        judged_passed=int(passed),
    )


def _says_something(hint: Rollout, row: Rollout, pass_threshold: float) -> bool:
    return bool(said_of(hint).strip())


def _hint_counts(hint: Rollout, row: Rollout, pass_threshold: float) -> Counts:
    """Counts a first attempt that says nothing: what was cut off within its thinking, say."""
    return collections.Counter(malformed=int(not _says_something(hint, row, pass_threshold)))


async def _write_critique(
    critic: Critic, problem: Problem, row: Rollout, index: RowIndex
) -> tuple[Rollout | None, bool]:
    assert critic.generator is not None, "a critic that writes has a generator"
    return await critic.generator.write_critique(
        problem,
        row,
        index,
        see_answer=critic.see_answer,
        see_solution=critic.see_solution,
        max_length=critic.max_length,
    )


async def _write_hint(critic: Critic, problem: Problem, row: Rollout, index: RowIndex) -> tuple[Rollout | None, bool]:
    """Writes a hint at the answer (NuRL, arXiv 2509.25666): it is not of the response, and has no verdict."""
    assert critic.generator is not None, "a critic that writes has a generator"
    return await critic.generator.write_hint(problem, row, index, max_length=critic.max_length)


class _Asked(NamedTuple):
    """What a generator writes, whether it can be used, and what is counted of a first attempt."""

    write: Callable[[Critic, Problem, Rollout, RowIndex], Awaitable[tuple[Rollout | None, bool]]]
    usable: Callable[[Rollout, Rollout, float], bool]
    counts: Callable[[Rollout, Rollout, float], Counts]


_ASKED = {
    "cot": _Asked(_write_critique, _usable, _verdict_counts),
    "hint": _Asked(_write_hint, _says_something, _hint_counts),
}


def _rule_text(critic: Critic, row: Rollout, problem: Problem, *, passed: bool) -> str:
    if critic.kind == "hint":  # in the place of one that did not come, or says nothing
        return "none"
    if critic.kind == "checklist":
        return texts_lib.of_checklist(passed, row.feedback, reveal_value=critic.reveal_value)
    if critic.kind == "execution" and (problem.grader or critic.grader) == "code":
        return texts_lib.of_tests(passed, row.feedback, reveal_value=critic.reveal_value)
    if critic.kind == "execution":
        assert critic.check_steps is not None, "execution of a response that is no program checks its steps"
        said = after_thinking(row.text, opened=bool(row.opening)) or row.text
        error = None if passed else critic.check_steps(problem.question, said)
        return texts_lib.execution(passed, error, reveal_value=critic.reveal_value)
    return texts_lib.indicative(passed, answer=problem.answer if critic.kind == "indicative_gt" else None)


def _by_rule(
    critic: Critic, row: Rollout, problem: Problem, index: RowIndex, encode: Callable[[str], list[int]]
) -> Rollout:
    passed = row.reward is not None and row.reward >= critic.pass_threshold
    text = _rule_text(critic, row, problem, passed=passed)
    ids = np.asarray(encode(text), np.int32)
    return Rollout(
        index=index,
        author=Author.RULE,
        weights_step=row.weights_step,
        prompt_ids=np.zeros(0, np.int32),
        token_ids=ids,
        logp=np.zeros(len(ids), np.float32),
        text=text,
        parent=row,
        # Where nothing is known of the reward, a critic that can't be read has said nothing.
        verdict=None if row.reward is None else passed,
    )
