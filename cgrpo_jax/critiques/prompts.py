"""The three prompts of Critique-GRPO as token ids: answer a question, critique an answer, refine it.

All three are user turns framed by the model's chat template, so they end in the same generation prefix: that is what
lets a refinement, sampled after the refine prompt, be trained as an answer to the question alone. Of a chat, the turns
before the question stand before the refine turn too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cgrpo_jax.critiques import texts
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.records import Turn, has_system_turn

_CUT = "\n[...]\n"
_CRITICISED = ("solution", "response")  # what of a critique prompt is cut where it is too long, in this order
# What the configuration calls the limits, for messages.
_KEYS = {
    "max_prompt_length": "max_prompt_length",
    "max_critique_prompt_length": "critic.max_prompt_length",
    "max_refinement_prompt_length": "refine.max_prompt_length",
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Builds prompts for one model.

    Attributes:
      tokenizer: the model's.
      system: system turn of a question whose chat has none of its own; empty for none.
      question: template of the question turn, with `{question}`.
      critique, critique_with_answer: templates of the critique turn, with `{question}`, `{response}` (and `{answer}`).
      critique_with_solution: likewise, with `{answer}` and `{solution}`.
      hint: template of the turn that asks for a hint, with `{question}` and `{answer}`.
      refine, refine_without_critique: templates of the refine turn, with `{question}`, `{response}` (and `{critique}`).
      refine_with_hint: likewise, with `{question}` and `{hint}`.
      teacher: template of the turn after which a teacher scores a response, as `refine`; empty for that itself.
      max_prompt_length, max_critique_prompt_length, max_refinement_prompt_length: limits in tokens.
    """

    tokenizer: Tokenizer
    max_prompt_length: int
    max_critique_prompt_length: int
    max_refinement_prompt_length: int
    system: str = ""
    question: str = "{question}"
    critique: str = texts.CRITIQUE_PROMPT
    critique_with_answer: str = texts.CRITIQUE_PROMPT_WITH_ANSWER
    critique_with_solution: str = texts.CRITIQUE_PROMPT_WITH_SOLUTION
    hint: str = texts.HINT_PROMPT
    refine: str = texts.REFINE_PROMPT
    refine_without_critique: str = texts.REFINE_PROMPT_WITHOUT_CRITIQUE
    refine_with_hint: str = texts.REFINE_PROMPT_WITH_HINT
    teacher: str = ""

    def __post_init__(self):
        texts.check_template(self.question, ("question",))
        texts.check_template(self.critique, ("question", "response"))
        texts.check_template(self.critique_with_answer, ("question", "response", "answer"))
        texts.check_template(self.critique_with_solution, ("question", "response", "answer", "solution"))
        texts.check_template(self.refine, ("question", "critique"))
        texts.check_template(self.teacher or self.refine, ("question", "critique"))
        texts.check_template(self.refine_without_critique, ("question", "response"))
        texts.check_template(self.hint, ("question", "answer"))
        texts.check_template(self.refine_with_hint, ("question", "hint"))

    def for_question(self, question: str, turns: Sequence[Turn] = ()) -> np.ndarray:
        """Returns the prompt that asks a question; never cut (a question over the limit is dropped at load time).

        Args:
          question: what is asked.
          turns: of a chat, what was said before.

        Raises:
          UserError: the chat template refuses the turns.
        """
        return self._ids(texts.fill(self.question, question=question), turns)

    def for_critique(
        self, question: str, response: str, answer: str | None, solution: str | None = None
    ) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks for a critique, and whether it was cut.

        Args:
          question, response: what is criticised.
          answer: the reference answer; None where the critic does not see it.
          solution: the reference solution, seen beside the answer; None where the critic does not see it.
        """
        template, fields = self._of_critique(question, response, answer, solution)
        return self._fitted(template, fields, _CRITICISED, "max_critique_prompt_length")

    def critique_message(
        self, question: str, response: str, answer: str | None, solution: str | None = None
    ) -> tuple[str, bool]:
        """Returns the user's turn of `for_critique` as text, for a model with a tokenizer and template of its own."""
        template, fields = self._of_critique(question, response, answer, solution)
        fields, cut = self._fitting(template, fields, _CRITICISED, "max_critique_prompt_length")
        return texts.fill(template, **fields), cut

    def for_verdict(self, question: str, response: str) -> tuple[np.ndarray, str, bool]:
        """Returns the prompt of a verdict problem, its user's turn as text, and whether the response in it was cut.

        It is that of a critic that sees no answer, and trains as a question does: `max_prompt_length` is its limit too.
        """
        template, fields = self._of_critique(question, response, None, None)
        fields, cut = self._fitting(template, fields, ("response",), "max_prompt_length")
        message = texts.fill(template, **fields)
        return self._ids(message), message, cut

    def for_hint(self, question: str, answer: str) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks for a hint, and whether it was cut. No response is in it."""
        fields = {"question": question, "answer": answer}
        return self._fitted(self.hint, fields, ("answer",), "max_critique_prompt_length")

    def hint_message(self, question: str, answer: str) -> tuple[str, bool]:
        """Returns the user's turn of `for_hint` as text, as `critique_message` does."""
        fields = {"question": question, "answer": answer}
        fields, cut = self._fitting(self.hint, fields, ("answer",), "max_critique_prompt_length")
        return texts.fill(self.hint, **fields), cut

    def _of_critique(
        self, question: str, response: str, answer: str | None, solution: str | None
    ) -> tuple[str, dict[str, str]]:
        """Returns the template of what a critic sees, and its fields."""
        fields = {"question": question, "response": response}
        if solution is not None:
            return self.critique_with_solution, fields | {"answer": answer or "", "solution": solution}
        return (self.critique, fields) if answer is None else (self.critique_with_answer, fields | {"answer": answer})

    def for_refinement(
        self, question: str, response: str, critique: str | None, turns: Sequence[Turn] = ()
    ) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks for a refinement (without a critique if None), and whether it was cut.

        It holds the question as the policy was asked it, with the instructions on form of the question's template:
        what is trained is an answer to that. Where `refine` has no `{response}`, it shows the critique alone: a small
        model that sees its attempt may only repeat it.

        Args:
          question, turns: as for `for_question`.
          response: what is refined.
          critique: of the response.
        """
        template = self.refine_without_critique if critique is None else self.refine
        return self._refinement(template, question, response, critique, turns)

    def for_teacher(
        self, question: str, response: str, critique: str, turns: Sequence[Turn] = ()
    ) -> tuple[np.ndarray, bool]:
        """Returns the prompt after which a teacher scores a response, and whether it was cut; as `for_refinement`."""
        return self._refinement(self.teacher or self.refine, question, response, critique, turns)

    def _refinement(
        self, template: str, question: str, response: str, critique: str | None, turns: Sequence[Turn]
    ) -> tuple[np.ndarray, bool]:
        asked = texts.fill(self.question, question=question)
        fields = {"question": asked} | ({"response": response} if "{response}" in template else {})
        fields |= {} if critique is None else {"critique": critique}
        # A sampled critique can take more tokens when its text is encoded again than it had when it was sampled.
        cuttable = ("response",) if critique is None else ("response", "critique")
        return self._fitted(template, fields, cuttable, "max_refinement_prompt_length", turns)

    def for_hinted(self, question: str, hint: str, turns: Sequence[Turn] = ()) -> tuple[np.ndarray, bool]:
        """Returns the prompt that asks a question with a hint, and whether it was cut; as `for_refinement` else."""
        fields = {"question": texts.fill(self.question, question=question), "hint": hint}
        return self._fitted(self.refine_with_hint, fields, ("hint",), "max_refinement_prompt_length", turns)

    def _ids(self, content: str, turns: Sequence[Turn] = ()) -> np.ndarray:
        system = [("system", self.system)] if self.system and not has_system_turn(turns) else []
        messages = [{"role": role, "content": text} for role, text in (*system, *turns, ("user", content))]
        return np.asarray(self.tokenizer.chat_ids(messages), np.int32)

    def _fitted(
        self, template: str, fields: dict, cuttable: Sequence[str], key: str, turns: Sequence[Turn] = ()
    ) -> tuple[np.ndarray, bool]:
        """Fills the template; where that is too long, the fields named are cut in their middle, the first one first.

        `key` names the limit.
        """
        fields, cut = self._fitting(template, fields, cuttable, key, turns)
        return self._ids(texts.fill(template, **fields), turns), cut

    def _fitting(
        self, template: str, fields: dict, cuttable: Sequence[str], key: str, turns: Sequence[Turn] = ()
    ) -> tuple[dict, bool]:
        """Returns the fields as they fit the limit, and whether one was cut."""
        cuttable = [name for name in cuttable if name in fields]
        limit = getattr(self, key)
        ids = self._ids(texts.fill(template, **fields), turns)
        if len(ids) <= limit:
            return fields, False
        marker = self.tokenizer.encode(_CUT)
        for name in cuttable:
            pieces = self.tokenizer.encode(fields[name])
            length = len(pieces)
            # Encoding the shortened text again may take a few tokens more than the cut promised.
            while length > 0:
                length = max(0, length - (len(ids) - limit))
                shortened = self.tokenizer.decode(texts.cut_middle(pieces, length, marker))
                fields = fields | {name: shortened}
                ids = self._ids(texts.fill(template, **fields), turns)
                if len(ids) <= limit:
                    return fields, True
        raise UserError(
            f"a prompt needs {len(ids)} tokens with nothing left of its {' and '.join(cuttable)}; "
            f"{_KEYS[key]} is {limit}; raise it."
        )
