"""A fixed Critique-GRPO iteration for generation.py: its questions, and three ways to write it.

64 questions of 7 responses, of very uneven lengths; of 30 % of the questions all responses fail, and each is critiqued
in 30 tokens and refined at the length of its response.

    pipelined   each question goes on as soon as its own texts are there
    barrier     all responses, then all critiques, then all refinements
    plain       the responses alone, as in GRPO
"""

import dataclasses
import heapq
import time
from collections.abc import Callable, Sequence

import numpy as np

from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.engine import Engine, Sampled, Stats
from cgrpo_jax.inference.orchestrator import Orchestrator, gather
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import RowIndex, Stage


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What an iteration writes.

    Attributes:
      prompts: of the questions.
      lengths_QN: tokens of each response, and of its refinement.
      failed: the questions that are refined.
      critique: tokens of a critique.
      framing: tokens that a critique or refine prompt has beside what it quotes.
    """

    prompts: Sequence[np.ndarray]
    lengths_QN: np.ndarray
    failed: frozenset[int]
    critique: int
    framing: np.ndarray

    @property
    def longest_prompt(self) -> int:
        quoted = int(self.lengths_QN.max()) + self.critique
        return len(self.prompts[0]) + quoted + len(self.framing)

    @property
    def longest(self) -> int:
        return self.longest_prompt + int(self.lengths_QN.max())

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens that are sampled, by stage."""
        refined = int(self.lengths_QN[sorted(self.failed)].sum())
        critiques = self.critique * len(self.failed) * self.lengths_QN.shape[1]
        return {"responses": int(self.lengths_QN.sum()), "critiques": critiques, "refinements": refined}


def draw(lengths: Sequence[int], *, questions: int, prompt: int, critique: int, vocab: int) -> Iteration:
    """Returns an iteration whose responses have the lengths given, in order."""
    rng = np.random.default_rng(0)
    prompts = list(rng.integers(0, vocab, (questions, prompt), dtype=np.int32))
    failed = frozenset(rng.permutation(questions)[: round(0.3 * questions)].tolist())
    framing = rng.integers(0, vocab, max(1, prompt // 4), dtype=np.int32)
    return Iteration(prompts, np.reshape(lengths, (questions, -1)), failed, critique, framing)


def listed_steps(work: Iteration, num_slots: int, *, barriers: bool) -> int:
    """Returns the steps of list scheduling: a slot that is free takes what waits, responses first.

    Nobody knows how long a text will be, or whether it will fail. So a long one that fails may begin among the last,
    and its critique and refinement come after all else; with barriers each stage waits for its longest text.

    Example:
      One question of one response of 5 tokens that fails, with critiques of 2, takes 5 + 2 + 5 steps either way.
    """
    now, free, order = 0, num_slots, 0
    going: list[tuple] = []  # (ends, stage, question, response)
    waiting: list[tuple] = []  # (stage, order, question, response)
    held: dict[Stage, list[tuple[int, int]]] = {Stage.CRITIQUE: [], Stage.REFINEMENT: []}
    left = [work.lengths_QN.shape[1]] * len(work.lengths_QN)

    def ask(stage: Stage, rows) -> None:
        nonlocal order
        for row in rows:
            heapq.heappush(waiting, (stage, order, *row))
            order += 1

    ask(Stage.RESPONSE, np.ndindex(work.lengths_QN.shape))
    while waiting or going:
        while free and waiting:
            stage, _, q, n = heapq.heappop(waiting)
            length = work.critique if stage == Stage.CRITIQUE else int(work.lengths_QN[q, n])
            heapq.heappush(going, (now + length, stage, q, n))
            free -= 1
        now, stage, q, n = heapq.heappop(going)
        free += 1
        rows: list[tuple[int, int]] = []
        if stage == Stage.RESPONSE:
            left[q] -= 1
            rows = [(q, i) for i in range(work.lengths_QN.shape[1])] if not left[q] and q in work.failed else []
        elif stage == Stage.CRITIQUE:
            rows = [(q, n)]
        following = Stage.REFINEMENT if stage == Stage.CRITIQUE else Stage.CRITIQUE
        if barriers:
            held[following] += rows
        else:
            ask(following, rows)
        if not (waiting or going):
            stage = next((stage for stage, rows in held.items() if rows), None)
            if stage is not None:
                ask(stage, sorted(held[stage]))
                held[stage] = []
    return now


async def _write(engine: Engine, prompt: np.ndarray, index: RowIndex, length: int) -> Sampled:
    request = Request(prompt, [index], length)
    (sampled,) = await orchestrator.write(engine, request)
    return sampled


async def respond(work: Iteration, engine: Engine, q: int) -> list[Sampled]:
    """Writes a question's responses, each of its own length."""
    return await gather(
        [
            _write(engine, work.prompts[q], RowIndex(question=q, response=n), int(length))
            for n, length in enumerate(work.lengths_QN[q])
        ]
    )


async def critique(work: Iteration, engine: Engine, q: int, n: int, response: Sampled) -> Sampled:
    prompt = np.concatenate([work.prompts[q], response.token_ids, work.framing])
    return await _write(engine, prompt, RowIndex(q, n, stage=Stage.CRITIQUE), work.critique)


async def refine(work: Iteration, engine: Engine, q: int, n: int, response: Sampled, said: Sampled) -> Sampled:
    prompt = np.concatenate([work.prompts[q], response.token_ids, said.token_ids, work.framing])
    return await _write(engine, prompt, RowIndex(q, n, stage=Stage.REFINEMENT), int(work.lengths_QN[q, n]))


def plain(work: Iteration, engine: Engine, params: dict) -> Stats:
    """Writes the responses alone."""
    return _timed(engine, params, lambda run: run([respond(work, engine, q) for q in range(len(work.prompts))]))


def pipelined(work: Iteration, engine: Engine, params: dict) -> Stats:
    """Writes all stages, each question at its own pace."""

    async def chain(q: int, n: int, response: Sampled) -> None:
        said = await critique(work, engine, q, n, response)
        await refine(work, engine, q, n, response, said)

    async def question(q: int) -> None:
        responses = await respond(work, engine, q)
        if q in work.failed:
            await gather([chain(q, n, response) for n, response in enumerate(responses)])

    return _timed(engine, params, lambda run: run([question(q) for q in range(len(work.prompts))]))


def barrier(work: Iteration, engine: Engine, params: dict) -> Stats:
    """Writes one stage of all questions after the other."""

    def stages(run) -> None:
        responses = run([respond(work, engine, q) for q in range(len(work.prompts))])
        rows = [(q, n, responses[q][n]) for q in sorted(work.failed) for n in range(len(responses[q]))]
        said = run([critique(work, engine, *row) for row in rows])
        run([refine(work, engine, *row, one) for row, one in zip(rows, said, strict=True)])

    return _timed(engine, params, stages)


def _timed(engine: Engine, params: dict, work: Callable) -> Stats:
    engine.begin(params, seed=0, iteration=0)
    engine.take_stats()
    began = time.monotonic()
    try:
        work(lambda coroutines: Orchestrator().run(coroutines, engines=[engine]))
    finally:
        engine.end()
    return dataclasses.replace(engine.take_stats(), seconds=time.monotonic() - began)
