"""Who writes rollouts: a model on the devices (policy, frozen critic, frozen refiner), or one behind an endpoint."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent import futures

import numpy as np

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.critiques.texts import parse_verdict
from cgrpo_jax.inference import chat_client, orchestrator
from cgrpo_jax.inference.chat_client import Answer, ChatClient
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models.hf import thinking_tags
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, transcript
from cgrpo_jax.rewards.thinking import after_thinking


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model that writes text: the policy, or a frozen critic.

    Attributes:
      engine, params: what samples, and its weights.
      prompts: the model's own prompts (its tokenizer and chat template).
      author, weights_step: who signs the rollouts, and how many updates the weights have seen.
      seed, iteration: enter every random key.
      sampling: temperature and truncation.
    """

    engine: Engine
    params: dict
    prompts: Prompts
    author: Author
    weights_step: int
    seed: int
    iteration: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    async def write(
        self, prompt_ids: np.ndarray, indices: Sequence[RowIndex], *, max_length: int, parent: Rollout | None = None
    ) -> list[Rollout]:
        """Samples the rows that `indices` name after a prompt, as rollouts."""
        request = Request(prompt_ids, indices, max_length, self.sampling)
        sampled = await orchestrator.write(self.engine, request)
        opening = self.prompts.tokenizer.thinking_opened_by(prompt_ids)
        return [
            Rollout(
                index=index,
                author=self.author,
                weights_step=self.weights_step,
                prompt_ids=prompt_ids,
                token_ids=row.token_ids,
                logp=row.logp,
                text=self.prompts.tokenizer.decode(row.token_ids),
                opening=opening,
                truncated=row.truncated,
                parent=parent,
            )
            for index, row in zip(indices, sampled, strict=True)
        ]

    async def write_critique(
        self,
        problem: Problem,
        row: Rollout,
        index: RowIndex,
        *,
        see_answer: bool,
        max_length: int,
        see_solution: bool = False,
    ) -> tuple[Rollout | None, bool]:
        """Returns a critique of a row, with its verdict, None if there is none; and whether its prompt was cut."""
        answer = problem.answer if see_answer else None
        solution = _shown_solution(problem) if see_solution else None
        prompt, cut = self.prompts.for_critique(transcript(problem), row.whole_text, answer, solution)
        (written,) = await self.write(prompt, [index], max_length=max_length, parent=row)
        verdict = parse_verdict(written.text, thinking_opened=bool(written.opening))
        return written.replace(verdict=verdict, prompt_cut=cut), cut

    async def write_hint(
        self, problem: Problem, row: Rollout, index: RowIndex, *, max_length: int
    ) -> tuple[Rollout | None, bool]:
        """Returns a hint at a problem's answer, which no response is read for; and whether its prompt was cut."""
        prompt, cut = self.prompts.for_hint(transcript(problem), problem.answer)
        (written,) = await self.write(prompt, [index], max_length=max_length, parent=row)
        return written.replace(prompt_cut=cut), cut


@dataclasses.dataclass(frozen=True)
class Refiner:
    """A frozen model that refines in the policy's place (weak to strong): its texts become the policy's tokens.

    Attributes:
      generator: the model, with its own tokenizer and chat template.
      tokenizer: the policy's.
    """

    generator: Generator
    tokenizer: Tokenizer

    @property
    def prompts(self) -> Prompts:
        """Its own."""
        return self.generator.prompts

    async def write(
        self, prompt_ids: np.ndarray, indices: Sequence[RowIndex], *, max_length: int, parent: Rollout | None = None
    ) -> list[Rollout]:
        """Samples as `Generator.write` does, and returns what the policy would train; what leaves it no token is not.

        Args:
          prompt_ids: of its own prompt.
          indices: of the rows.
          max_length: tokens that a text may have, of its own, and encoded again of the policy's.
          parent: the critique, whose parent is the policy's response.
        """
        rows = await self.generator.write(prompt_ids, indices, max_length=max_length, parent=parent)
        asked = self.prompts.tokenizer.spell(prompt_ids)
        encoded = [self._as_the_policys(row, asked, max_length=max_length) for row in rows]
        return [row for row in encoded if len(row.token_ids)]

    def _as_the_policys(self, row: Rollout, asked: str, *, max_length: int) -> Rollout:
        """Returns a row encoded for the policy; its turn ends where the refiner ended it, and all of it fits."""
        response = row.parent and row.parent.parent
        opening = response.opening if response else ""
        ids = self.tokenizer.encode_turn(thinking_tags.gone_on(row.whole_text, opening))
        ended = not row.truncated and len(ids) < max_length
        ids = [*ids, self.tokenizer.end_of_turn_id] if ended else ids[:max_length]
        return row.replace(
            token_ids=np.asarray(ids, np.int32),
            logp=np.zeros(len(ids), np.float32),  # which the policy does not know
            text=self.tokenizer.decode(ids),
            opening=opening,
            truncated=not ended,
            asked=asked,
        )


@dataclasses.dataclass(frozen=True)
class RemoteGenerator:
    """A critic behind an OpenAI-compatible endpoint. It need not answer, and not the same twice.

    Attributes:
      client: asks the endpoint; None on processes that do not.
      prompts: the policy's; their templates make the messages, and their limit cuts these.
      seed, iteration, sampling: as in `Generator`.
    """

    client: ChatClient | None
    prompts: Prompts
    seed: int
    iteration: int
    sampling: Sampling

    async def write_critique(
        self,
        problem: Problem,
        row: Rollout,
        index: RowIndex,
        *,
        see_answer: bool,
        max_length: int,
        see_solution: bool = False,
    ) -> tuple[Rollout | None, bool]:
        """Returns a critique of a row, with its verdict, None if no answer came; and whether its prompt was cut."""
        gold, solution = problem.answer if see_answer else None, _shown_solution(problem) if see_solution else None
        message, cut = self.prompts.critique_message(transcript(problem), row.whole_text, gold, solution)
        written = await self._ask(message, problem, row, index, max_length=max_length)
        if written is None:
            return None, cut
        written = written.replace(
            prompt_cut=cut, verdict=parse_verdict(written.text, thinking_opened=bool(written.opening))
        )
        without = "its text was cut off" if written.truncated else "its text has none"
        await orchestrator.record_reply(problem, failure=without if written.verdict is None else None)
        return written, cut

    async def write_hint(
        self, problem: Problem, row: Rollout, index: RowIndex, *, max_length: int
    ) -> tuple[Rollout | None, bool]:
        """Returns a hint at a problem's answer, None if no reply came; and whether its prompt was cut."""
        message, cut = self.prompts.hint_message(transcript(problem), problem.answer)
        written = await self._ask(message, problem, row, index, max_length=max_length)
        if written is None:
            return None, cut
        said = after_thinking(written.text, opened=bool(written.opening)).strip()
        without = "its text was cut off" if written.truncated else "its text is empty"
        await orchestrator.record_reply(problem, failure=None if said else without)
        return written.replace(prompt_cut=cut), cut

    async def _ask(
        self, message: str, problem: Problem, row: Rollout, index: RowIndex, *, max_length: int
    ) -> Rollout | None:
        """Returns what the endpoint writes about a row, None if no answer came; who reads it records the reply."""
        key = np.random.SeedSequence([self.seed, self.iteration, *dataclasses.astuple(index)])

        def submit() -> futures.Future[Answer]:
            assert self.client is not None  # on process 0, which alone asks
            return self.client.submit(
                message,
                system=self.prompts.system,
                max_tokens=max_length,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                seed=int(key.generate_state(1)[0] >> 1),
            )

        reply = await orchestrator.await_future(submit)
        if reply["text"] is None:
            if reply["failure"] != chat_client.OVER_BUDGET:
                await orchestrator.record_reply(problem, failure=reply["failure"])
            return None
        ids = np.asarray(self.prompts.tokenizer.encode(reply["text"]), np.int32)
        # Its template is not known: a reply that was cut off may never have ended to think.
        opening = thinking_tags.OPENING if reply["truncated"] else ""
        return Rollout(
            index=index,
            author=Author.CRITIC,
            weights_step=0,
            prompt_ids=np.zeros(0, np.int32),
            token_ids=ids,
            logp=np.zeros(len(ids), np.float32),
            text=reply["text"],
            truncated=reply["truncated"],
            asked=f"{self.prompts.system}\n\n{message}" if self.prompts.system else message,
            opening=opening,
            parent=row,
        )


def _shown_solution(problem: Problem) -> str | None:
    """Returns what a critic sees of a solution, which may be a whole trace of thinking."""
    return problem.solution and (after_thinking(problem.solution).strip() or problem.solution)


@contextlib.contextmanager
def running_engines(*generators: Generator | Refiner | RemoteGenerator | None) -> Iterator[list[Engine]]:
    """Sets the engines of generators to work, each once, and yields them; a remote generator, or None, has none.

    Those that share an engine, as a policy that criticises itself does, share weights and keys, but not the sampling.
    """
    by_engine: dict[int, list[Generator]] = {}
    for given in generators:
        generator = given.generator if isinstance(given, Refiner) else given
        if isinstance(generator, Generator):
            by_engine.setdefault(id(generator.engine), []).append(generator)
    begun: list[Engine] = []
    try:
        for first, *more in by_engine.values():
            others = [one for one in dict.fromkeys(each.sampling for each in more) if one != first.sampling]
            first.engine.begin(
                first.params,
                seed=first.seed,
                iteration=first.iteration,
                sampling=first.sampling,
                **({"others": others} if others else {}),
            )
            first.engine.take_stats()  # what an evaluation left
            begun.append(first.engine)
        yield begun
    finally:
        for engine in begun:
            engine.end()
