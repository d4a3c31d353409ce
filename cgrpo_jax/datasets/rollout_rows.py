"""Rollouts on disk as what `finetune` learns: right answers, right refinements, critiques, pairs.

| method | `finetune.loss` | `finetune.stages` | `finetune.which` |
|---|---|---|---|
| RAFT | `nll` | `response` | `right` |
| refinement fine-tuning | `nll` | `refinement` | `right` |
| CITL-FT | `nll` | `response`, `refinement` | `right` |
| critique fine-tuning | `nll` | `critique` | `right`: its verdict agrees with the grader |
| RCO | `rco` | `critique` | |
| DPCO | `dpo` | `critique` | |

Token ids stay as they were sampled where they are this model's; else the texts are encoded again. Verdict problems,
whose answers are verdicts, are left out.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.datasets.rollout_columns import VERSION_KEY
from cgrpo_jax.datasets.units import Unit, row_of, target_ids
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import VERDICT, Author, LossKind, Problem, Rollout, RowIndex, Stage, problem_id, transcript
from cgrpo_jax.training import critic_rows

WHICH = ("right", "agreeing", "all")
CONTEXTS = ("question", "prompt")
UTILITY = "utility"  # among the rewards of a refinement: what it is worth beside its response


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of rollouts that a path is or holds, in the order of their names; none of other data."""
    candidates = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    return [one for one in candidates if _holds_rollouts(one)]


def _holds_rollouts(path: pathlib.Path) -> bool:
    import pyarrow as pa  # here: most data are read without
    from pyarrow import parquet

    try:
        with path.open("rb") as opened:
            return VERSION_KEY in (parquet.read_schema(opened).metadata or {})
    except (OSError, pa.ArrowException):  # who reads it as other data says what is wrong
        return False


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads rollouts.

    Attributes:
      prompts: of the model that learns.
      loss: kind of loss that the rows are for.
      stages: that are learnt.
      which: all of them, or the `right` ones: whose reward is at least `pass_threshold`, of critiques whose verdict
        agrees with that of what they criticise; or `agreeing`: of these, refinements after such critiques alone.
      context: what a refinement is learnt after: the `question` alone, or the `prompt` that it was sampled after.
      pass_threshold: reward from which a text is right.
      sees: what the prompt of a critique that is written again shows: `nothing`, `answer` or `solution`.
    """

    prompts: Prompts
    loss: LossKind
    stages: tuple[Stage, ...]
    which: str
    context: str
    pass_threshold: float
    sees: str

    def units(self, path: str | pathlib.Path) -> Iterator[Unit]:
        """Yields the units of a file.

        Raises:
          UserError: it can't be read, or a prompt can't be made.
        """
        rows = rollouts.read(path)
        kept = [(number, row) for number, row in enumerate(rows, start=1) if self._is_learnt(row)]
        if self.loss == LossKind.NLL:
            for number, row in kept:
                if self.which == "all" or self._is_right(row.rollout):
                    yield self._single(row, f"{path}, row {number}")
            return
        utilities = self._utilities([row.rollout for row in rows])
        if self.loss == LossKind.RCO:
            yield from self._critiques(kept, utilities, path)
        else:
            yield from self._pairs(kept, utilities, path)

    def _is_learnt(self, row: rollouts.Row) -> bool:
        one = row.rollout
        is_verdict = row.problem.grader == VERDICT
        usable = not (row.is_rejected or one.ungraded or is_verdict)
        return one.stage in self.stages and usable and one.author != Author.RULE

    def _is_right(self, one: Rollout) -> bool:
        if one.stage != Stage.CRITIQUE:
            about = one.parent if one.stage == Stage.REFINEMENT and self.which == "agreeing" else None
            agrees = about is None or about.stage != Stage.CRITIQUE or self._is_right(about)
            return self._passes(one) is True and agrees
        return one.verdict is not None and one.parent is not None and one.verdict == self._passes(one.parent)

    def _passes(self, one: Rollout) -> bool | None:
        """Whether a text is right; None where that is not known."""
        return None if one.ungraded or one.reward is None else one.reward >= self.pass_threshold

    def _utilities(self, texts: Sequence[Rollout]) -> dict[RowIndex, float]:
        """Returns of each critique, by its index, the mean of what the refinements after it are worth."""
        scores: dict[RowIndex, list[float]] = collections.defaultdict(list)
        for one in texts:
            critique = one.parent
            if one.stage != Stage.REFINEMENT or critique is None or critique.stage != Stage.CRITIQUE:
                continue
            if (score := self._worth(one, critique.parent)) is not None:
                scores[critique.index].append(score)
        return {index: sum(some) / len(some) for index, some in scores.items()}

    def _worth(self, refinement: Rollout, response: Rollout | None) -> float | None:
        """Returns what a refinement is worth beside its response: 1 fixed, 0.5 as before, 0 broken; None if not known.

        It is a reward of this name where it was collected with one, by a judge of both orders as in RCO (arXiv
        2506.22157); else a preference score by the grader.
        """
        if UTILITY in (named := dict(refinement.rewards)):
            return named[UTILITY]
        after, before = self._passes(refinement), None if response is None else self._passes(response)
        return None if after is None or before is None else critic_rows.worth(after, before)

    # --- units --------------------------------------------------------------------------------------------------

    def _single(self, row: rollouts.Row, where: str) -> Unit:
        return Unit((row_of(*self._ids(row, where)),), where, question=problem_id(row.problem))

    def _critiques(
        self, kept: Sequence[tuple[int, rollouts.Row]], utilities: dict[RowIndex, float], path: str | pathlib.Path
    ) -> Iterator[Unit]:
        for number, row in kept:
            index = row.rollout.index
            if row.rollout.stage == Stage.CRITIQUE and index in utilities and not index.refinement:
                where = f"{path}, row {number}"
                yield Unit(
                    (row_of(*self._ids(row, where), loss=LossKind.RCO),),
                    where,
                    question=problem_id(row.problem),
                    utility=utilities[index],
                    group=f"{path} {index.question} {index.response}",
                )

    def _pairs(
        self, kept: Sequence[tuple[int, rollouts.Row]], utilities: dict[RowIndex, float], path: str | pathlib.Path
    ) -> Iterator[Unit]:
        """Yields of all texts after one context the best and the worst, where they differ: by reward, or by utility."""
        groups: dict[bytes, list[tuple[float, int, list[int], Problem]]] = collections.defaultdict(list)
        contexts: dict[bytes, list[int]] = {}
        for number, row in kept:
            one = row.rollout
            score = utilities.get(one.index) if one.stage == Stage.CRITIQUE else one.reward
            if score is None:
                continue
            context, target = self._ids(row, f"{path}, row {number}")
            key = np.asarray(context, np.int32).tobytes()
            contexts[key] = context
            groups[key].append((score, number, target, row.problem))
        for key, some in groups.items():
            best, worst = max(some, key=lambda one: one[0]), min(some, key=lambda one: one[0])
            if best[0] > worst[0]:
                rows = tuple(
                    row_of(contexts[key], one[2], loss=LossKind.DPO, pair=pair)
                    for one, pair in ((best, 1), (worst, -1))
                )
                yield Unit(rows, f"{path}, rows {best[1]} and {worst[1]}", question=problem_id(best[3]))

    # --- token ids ----------------------------------------------------------------------------------------------

    def _ids(self, row: rollouts.Row, where: str) -> tuple[list[int], list[int]]:
        """Returns context and target of a text: as they were sampled, or encoded again for another model."""
        one = row.rollout
        source = _root(one) if one.stage == Stage.REFINEMENT and self.context == "question" else one
        if self._is_ours(one) and len(source.prompt_ids):
            return source.prompt_ids.tolist(), one.token_ids.tolist()
        try:
            context = self._prompt(source, row.problem).tolist()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return context, target_ids(self.prompts.tokenizer, context, one.whole_text, ends=not one.truncated)

    def _is_ours(self, one: Rollout) -> bool:
        """Whether a text's token ids are of the tokenizer here: they decode to it, and its prompt ends as all do.

        Those of a frozen refiner's prompt are of its own tokenizer, however they end.
        """
        if one.author == Author.REFINER:
            return False
        tokenizer, length = self.prompts.tokenizer, len(one.prompt_ids)
        if not length or max(one.prompt_ids.max(), one.token_ids.max(initial=0)) >= tokenizer.vocab_size:
            return False
        ends_alike = tuple(one.prompt_ids[length - len(self._prefix) :].tolist()) == self._prefix
        return ends_alike and tokenizer.decode(one.token_ids) == one.text

    @functools.cached_property
    def _prefix(self) -> tuple[int, ...]:
        """The tokens by which all prompts end."""
        return self.prompts.tokenizer.generation_prefix_ids()

    def _prompt(self, one: Rollout, problem: Problem) -> np.ndarray:
        """Returns the prompt of a text as this model is asked it."""
        if one.stage == Stage.RESPONSE:
            return self.prompts.for_question(problem.question, problem.turns)
        about = one.parent
        if one.stage == Stage.CRITIQUE:
            response = "" if about is None else about.whole_text
            answer = None if self.sees == "nothing" else problem.answer
            solution = problem.solution if self.sees == "solution" else None
            return self.prompts.for_critique(transcript(problem), response, answer, solution)[0]
        critique = about.text if about is not None and about.stage == Stage.CRITIQUE else None
        return self.prompts.for_refinement(problem.question, _root(one).text, critique, problem.turns)[0]


def _root(one: Rollout) -> Rollout:
    """Returns the response that a text goes back to."""
    while one.parent is not None:
        one = one.parent
    return one
