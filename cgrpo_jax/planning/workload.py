"""What an iteration writes, as lengths alone: drawn from distributions, or those of a run's rollouts.

draw = parse("lognormal(mean=1500, sigma=0.8, max=6144)")
lengths = draw(np.random.default_rng(0), 896)
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, RowIndex, Stage

Draw = Callable[[np.random.Generator, int], np.ndarray]
_SHORTEST = 16  # tokens of a text that is drawn


@dataclasses.dataclass(frozen=True)
class Asked:
    """Texts that are asked for after one prompt.

    Attributes:
      prompt_ids: `[P]` int32.
      tokens: of each text, by its index.
      max_length: tokens that a text may have.
    """

    prompt_ids: np.ndarray
    tokens: Mapping[RowIndex, int]
    max_length: int

    @property
    def stage(self) -> Stage:
        return next(iter(self.tokens)).stage


Chain = tuple[tuple[Asked, ...], ...]  # what follows a response: steps, each with what is asked for at once


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of an iteration.

    Attributes:
      responses: to it.
      phases: what follows once these are graded: chains that go on each by itself, and the next phase after all.
    """

    responses: Asked
    phases: tuple[tuple[Chain, ...], ...] = ()

    @property
    def all(self) -> Iterator[Asked]:
        """All that is asked for of it."""
        yield self.responses
        yield from (asked for phase in self.phases for chain in phase for step in chain for asked in step)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an iteration does with its questions, and the greatest lengths.

    Attributes:
      num_questions, num_responses: of an iteration, and of a question.
      num_critiques: written of each response; 0 where a rule writes them, or none are.
      num_refinements: of each critique; 0 where nothing is refined.
      critiques_all: whether all responses are critiqued, not only those that are refined.
      max_prompt, max_length: tokens, by stage.
    """

    num_questions: int
    num_responses: int
    num_critiques: int
    num_refinements: int
    critiques_all: bool
    max_prompt: Mapping[Stage, int]
    max_length: Mapping[Stage, int]


# --- distributions ------------------------------------------------------------------------------------------------


def parse(text: str) -> Draw:
    """Returns what draws lengths: `lognormal(mean=1500, sigma=0.8, max=6144)`, `uniform(min=8, max=64)`, `fixed(1000)`.

    The mean of a lognormal is that before it is cut at `max`.

    Raises:
      UserError: it is none of these.
    """
    match = re.fullmatch(r"(lognormal|uniform|fixed)\((.*)\)", text.replace(" ", ""))
    given: dict[str, float] = {}
    try:
        if match is None:
            raise ValueError
        for one in match[2].split(","):
            name, equals, value = one.rpartition("=")
            if (name or "tokens") in given or bool(name) != bool(equals):
                raise ValueError
            given[name or "tokens"] = float(value)
        if not all(math.isfinite(value) and value > 0 for value in given.values()):
            raise ValueError
        kind = match[1]
        if kind == "fixed" and set(given) == {"tokens"}:
            return lambda rng, number: np.full(number, int(given["tokens"]))
        if kind == "uniform" and set(given) == {"min", "max"} and given["min"] <= given["max"]:
            return lambda rng, number: rng.integers(int(given["min"]), int(given["max"]) + 1, number)
        if kind == "lognormal" and {"mean", "sigma"} <= set(given) <= {"mean", "sigma", "max"}:
            return functools.partial(_lognormal, given["mean"], given["sigma"], given.get("max", math.inf))
        raise ValueError
    except ValueError:
        raise UserError(
            f"lengths {text!r} are no distribution; write lognormal(mean=1500, sigma=0.8, max=6144), "
            "uniform(min=8, max=64) or fixed(1000)."
        ) from None


def _lognormal(mean: float, sigma: float, most: float, rng: np.random.Generator, number: int) -> np.ndarray:
    """Returns lengths whose mean is that before they are cut."""
    return np.clip(np.exp(rng.normal(math.log(mean) - sigma**2 / 2, sigma, number)), _SHORTEST, most).astype(int)


def drawn(shape: Shape, *, prompts: Draw, texts: Draw, critiques: Draw, failed: float, seed: int) -> list[Question]:
    """Returns an iteration whose lengths are drawn; a share of its questions is refined.

    No two prompts begin alike, but for those of the same question and stage. A critique's prompt has the question's
    tokens, 120 and the response; a refinement's 100 more and the critique.

    Args:
      shape: what is done.
      prompts, texts, critiques: tokens of questions, of responses and refinements, and of critiques.
      failed: share of the questions of which all responses fail.
      seed: of all draws.
    """
    rng, most = np.random.default_rng(seed), shape.max_length
    Q, N, C, R = shape.num_questions, shape.num_responses, max(1, shape.num_critiques), shape.num_refinements
    asked = np.minimum(prompts(rng, Q), shape.max_prompt[Stage.RESPONSE])
    first_QN = np.minimum(texts(rng, Q * N), most[Stage.RESPONSE]).reshape(Q, N)
    failing = frozenset(rng.permutation(Q)[: round(failed * Q)].tolist())
    second_QNC = np.minimum(critiques(rng, Q * N * C), most[Stage.CRITIQUE]).reshape(Q, N, C)
    third_QNCR = np.minimum(texts(rng, Q * N * C * max(R, 1)), most[Stage.REFINEMENT]).reshape(Q, N, C, -1)
    made = 0

    def prompt(stage: Stage, tokens: int) -> np.ndarray:
        nonlocal made
        made += 1
        return np.full(min(tokens, shape.max_prompt[stage]), made, np.int32)

    def critique(q: int, n: int) -> tuple[Asked, ...]:
        ids = prompt(Stage.CRITIQUE, int(asked[q] + 120 + first_QN[q, n]))
        index = RowIndex(q, n, stage=Stage.CRITIQUE)
        lengths = [dict([(index.replace(critique=c), int(second_QNC[q, n, c]))]) for c in range(shape.num_critiques)]
        return tuple(Asked(ids, one, most[Stage.CRITIQUE]) for one in lengths)

    def refine(q: int, n: int) -> tuple[Asked, ...]:
        found = []
        for c in range(C):
            ids = prompt(Stage.REFINEMENT, int(asked[q] + 220 + first_QN[q, n] + second_QNC[q, n, c]))
            indices = [RowIndex(q, n, c, r, Stage.REFINEMENT) for r in range(R)]
            lengths = {index: int(third_QNCR[q, n, c, index.refinement]) for index in indices}
            found.append(Asked(ids, lengths, most[Stage.REFINEMENT]))
        return tuple(found)

    def question(q: int) -> Question:
        ids = prompt(Stage.RESPONSE, int(asked[q]))
        lengths = {RowIndex(q, n): int(first_QN[q, n]) for n in range(N)}
        responses, refines = Asked(ids, lengths, most[Stage.RESPONSE]), q in failing and R > 0
        rows, critiqued = range(N), shape.num_critiques > 0
        if shape.critiques_all and critiqued:
            after = (tuple((refine(q, n),) for n in rows),) if refines else ()
            return Question(responses, (tuple((critique(q, n),) for n in rows), *after))
        if not refines:
            return Question(responses)
        return Question(responses, (tuple((*([critique(q, n)] if critiqued else []), refine(q, n)) for n in rows),))

    return [question(q) for q in range(Q)]


# --- a run's rollouts ---------------------------------------------------------------------------------------------


def of_rollouts(where: str | pathlib.Path, shape: Shape) -> tuple[list[Question], pathlib.Path]:
    """Returns the iteration that the last file of rollouts holds, prompts and all, and that file.

    Texts that no model here sampled, as those of a rule or an endpoint, are left out.

    Args:
      where: a file, a folder of rollouts, or a run's folder.
      shape: for the greatest lengths.

    Raises:
      UserError: there is no file, or it can't be read.
    """
    file = rollout_questions.files(where)[-1]
    rows = [row.rollout for row in rollouts.read(file)]
    models = (Author.POLICY, Author.CRITIC, Author.REFINER)
    written = [row for row in rows if row.author in models and len(row.prompt_ids) and len(row.logp)]
    most = shape.max_length
    # One prompt for all that share it: a scheduler finds the samples of a prompt by it.
    prompts: dict[tuple[Stage, bytes], np.ndarray] = {}
    responses: dict[int, list[RowIndex]] = {}
    later: dict[tuple[int, int], dict[tuple[int, int, int], dict[int, list]]] = {}
    tokens, ids_of = {}, {}
    for row in written:
        index = row.index
        tokens[index] = len(row.token_ids)
        ids_of[index] = prompts.setdefault((index.stage, row.prompt_ids.tobytes()), row.prompt_ids)
        if index.stage == Stage.RESPONSE:
            responses.setdefault(index.question, []).append(index)
        else:
            # A critique, its attempts, its refinements, and what is said of those.
            order = (index.refinement if index.stage == Stage.CRITIQUE else 0, int(index.stage), index.attempt)
            of_response = later.setdefault((index.question, index.response), {})
            of_response.setdefault(order, {}).setdefault(id(ids_of[index]), []).append(index)

    def asked(indices: Sequence[RowIndex]) -> Asked:
        return Asked(ids_of[indices[0]], {one: tokens[one] for one in indices}, most[indices[0].stage])

    def chain(question: int, response: int) -> Chain:
        steps = sorted(later[question, response].items())
        return tuple(tuple(asked(indices) for indices in step.values()) for _, step in steps)

    found = []
    for question, indices in responses.items():
        chains = tuple(chain(*key) for key in later if key[0] == question)
        found.append(Question(asked(indices), (chains,) if chains else ()))
    if not found:
        raise UserError(f"{file} holds no response that a model sampled; give the rollouts of a run that trains.")
    return found, file
