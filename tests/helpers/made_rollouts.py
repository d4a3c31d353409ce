"""Rows of an iteration about one question, made by hand: responses, critiques of them, refinements after these."""

import chain_prompts
import numpy as np

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.datasets.rollouts import Row
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage

RESPONSE, CRITIQUE, REFINEMENT = Stage.RESPONSE, Stage.CRITIQUE, Stage.REFINEMENT
PROBLEM = Problem(0, "2+3?", "5", source="sums")


class Made:
    """Rows of an iteration, in their order."""

    def __init__(self, tokenizer, **templates):
        self.prompts, self.rows = chain_prompts.make(tokenizer, **templates), []
        self.tokenizer = tokenizer

    def add(self, stage, text, prompt, parent=None, author=Author.POLICY, is_rejected=False, ends=True, **fields):
        index = fields.pop("index", None) or RowIndex(question=fields.pop("question", 0), stage=stage)
        ids = [*self.tokenizer.encode_turn(text), *([self.tokenizer.end_of_turn_id] if ends else [])]
        rollout = Rollout(
            index,
            author,
            weights_step=0,
            prompt_ids=np.asarray(prompt, np.int32),
            token_ids=np.asarray(ids, np.int32),
            logp=np.zeros(len(ids), np.float32),
            text=text,
            parent=parent,
            truncated=not ends,
            **fields,
        )
        self.rows.append(Row(rollout, PROBLEM, grader="" if stage == CRITIQUE else "math", is_rejected=is_rejected))
        return rollout

    def response(self, number, reward, text, **fields):
        index = RowIndex(question=0, response=number, stage=RESPONSE)
        return self.add(RESPONSE, text, self.prompts.for_question("2+3?"), reward=reward, index=index, **fields)

    def critique(self, of, number, verdict, text, **fields):
        prompt = fields.pop("prompt", None)
        prompt = self.prompts.for_critique("2+3?", of.text, None)[0] if prompt is None else prompt
        index = of.index.replace(stage=CRITIQUE, critique=number)
        return self.add(CRITIQUE, text, prompt, of, verdict=verdict, index=index, **fields)

    def refinement(self, of, number, reward, text, **fields):
        prompt = self.prompts.for_refinement("2+3?", of.parent.text, of.text)[0]
        index = of.index.replace(stage=REFINEMENT, refinement=number)
        return self.add(REFINEMENT, text, prompt, of, reward=reward, index=index, **fields)


def write(folder, tokenizer, **templates):
    """Writes a wrong response with three critiques, a right one with two, and one that was cut off and is not graded.

    Each critique is followed by two refinements. The utilities of the five are 1, 3/4, 1/2; 1/2, 1/4.
    """
    made = Made(tokenizer, **templates)
    wrong, right = made.response(0, 0.0, "six"), made.response(1, 1.0, "5")
    made.response(2, None, "five minus", ends=False, ungraded=True)
    helps = made.critique(wrong, 0, False, "It is less: wrong")
    vague = made.critique(wrong, 1, False, "wrong")
    praises = made.critique(wrong, 2, True, "right")
    agrees = made.critique(right, 0, True, "All right")
    breaks = made.critique(right, 1, False, "It is more: wrong")
    for critique, rewards in ((helps, (1, 1)), (vague, (1, 0)), (praises, (0, 0)), (agrees, (1, 1)), (breaks, (0, 1))):
        for number, reward in enumerate(rewards):
            made.refinement(critique, number, float(reward), f"so {5 if reward else 'six'} {critique.text} {number}")
    folder.mkdir(parents=True, exist_ok=True)
    rollouts.write(folder / rollouts.file_name(0), made.rows, iteration=0, spell=tokenizer.spell)
    return folder
