"""The three prompts of Critique-GRPO as token ids: answer a question, critique an answer, refine it.

All three are user turns framed by the model's chat template, so they end in the same generation prefix: that is what
lets a refinement, sampled after the refine prompt, be trained as an answer to the question alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cgrpo_jax import critiques
from cgrpo_jax.errors import UserError
from cgrpo_jax.tokenizer import Tokenizer

_CUT = "\n[...]\n"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Builds prompts for one model.

    Attributes:
      tokenizer: the model's.
      system: system turn; empty for none.
      question: template of the question turn, with `{question}`.
      critique, critique_with_answer: templates of the critique turn, with `{question}`, `{response}` (and `{answer}`).
      refine, refine_without_critique: templates of the refine turn, with `{question}`, `{response}` (and `{critique}`).
      max_prompt_length, max_critique_prompt_length, max_refinement_prompt_length: limits in tokens.
    """

    tokenizer: Tokenizer
    max_prompt_length: int
    max_critique_prompt_length: int
    max_refinement_prompt_length: int
    system: str = ""
    question: str = "{question}"
    critique: str = critiques.CRITIQUE_PROMPT
    critique_with_answer: str = critiques.CRITIQUE_PROMPT_WITH_ANSWER
    refine: str = critiques.REFINE_PROMPT
    refine_without_critique: str = critiques.REFINE_PROMPT_WITHOUT_CRITIQUE

    def __post_init__(self):
        critiques.check_template(self.question, ("question",))
        critiques.check_template(self.critique, ("question", "response"))
        critiques.check_template(self.critique_with_answer, ("question", "response", "answer"))
        critiques.check_template(self.refine, ("question", "response", "critique"))
        critiques.check_template(self.refine_without_critique, ("question", "response"))

    def for_question(self, question: str) -> np.ndarray:
        """Returns the prompt that asks a question; never cut (a question over the limit is dropped at load time)."""
        return self._ids(critiques.fill(self.question, question=question))

    def for_critique(self, question: str, response: str, answer: str | None) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks for a critique (with the reference answer if given), and whether it was cut."""
        template = self.critique if answer is None else self.critique_with_answer
        fields = {"question": question} | ({} if answer is None else {"answer": answer})
        return self._fitted(template, fields, response, self.max_critique_prompt_length)

    def for_refinement(self, question: str, response: str, critique: str | None) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks for a refinement (without a critique if None), and whether it was cut."""
        template = self.refine_without_critique if critique is None else self.refine
        fields = {"question": question} | ({} if critique is None else {"critique": critique})
        return self._fitted(template, fields, response, self.max_refinement_prompt_length)

    def _ids(self, content: str) -> np.ndarray:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        return np.asarray(self.tokenizer.chat_ids([*messages, {"role": "user", "content": content}]), np.int32)

    def _fitted(self, template: str, fields: dict, response: str, limit: int) -> tuple[np.ndarray, bool]:
        """Fills the template; a response that makes the prompt too long is cut in its middle until it fits."""
        ids = self._ids(critiques.fill(template, response=response, **fields))
        if len(ids) <= limit:
            return ids, False
        pieces: Sequence[int] = self.tokenizer.encode(response)
        marker = self.tokenizer.encode(_CUT)
        room = len(pieces)
        # Re-tokenising the shortened text may need a few tokens more than the cut promised.
        while room > 0:
            room = max(0, room - (len(ids) - limit))
            shortened = self.tokenizer.decode(critiques.cut_middle(pieces, room, marker))
            ids = self._ids(critiques.fill(template, response=shortened, **fields))
            if len(ids) <= limit:
                return ids, True
        raise UserError(
            f"a critique or refine prompt needs more than {limit} tokens without the response; raise "
            "max_critique_prompt_length or max_refinement_prompt_length."
        )
