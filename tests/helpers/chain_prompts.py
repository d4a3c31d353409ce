"""Prompts of the quickstart's arithmetic chains."""

import importlib.resources

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.models.hf.tokenizer import load_tokenizer

CHAINS = dict(
    critique="{question}\nTried: {response}\nCheck.",
    critique_with_answer="{question}\nTried: {response}\nThe answer is {answer}.\nCheck.",
    critique_with_solution="{question}\nTried: {response}\nThe answer is {answer}. {solution}\nCheck.",
    refine="{question}\nTried: {response}\nCritique: {critique}\nTry again.",
    refine_without_critique="{question}\nTried: {response}\nTry again.",
)


def arithmetic_tokenizer():
    return load_tokenizer(importlib.resources.files("cgrpo_jax") / "assets" / "arithmetic")


def make(tokenizer, limit=1000, **templates):
    return Prompts(
        tokenizer,
        max_prompt_length=limit,
        max_critique_prompt_length=limit,
        max_refinement_prompt_length=limit,
        **templates,
    )
