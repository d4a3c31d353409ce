"""Lessons of the warm start in `snippets`: answer questions whose words are all taught, refine programs that fail.

A refinement's question has taught words and words coined for this one lesson, which mean whatever was drawn for them:
that can't be recalled, and has to be read out of a failing test.
"""

import random
from collections.abc import Iterator, Sequence

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets.tasks import snippets
from cgrpo_jax.records import TrainRow
from cgrpo_jax.training.sft import lesson

TAUGHT = "programs for such questions, and wrong ones corrected after a failing test"  # for those who read of a run
_ANSWER = 0.3  # share of the lessons in answering
_COINED = 0.6  # of the operations in lessons in refining
# Formats of a critique, as often as this. The same lessons come in each, so that no arm of a comparison has seen the
# others' format only: where nothing says what a coined word means, what is taught is to try another operation.
_FORMATS = {"value": 6, "no value": 1, "verdict": 1, "none": 1}


def lessons(
    prompts: Prompts, *, seed: int, lengths: Sequence[int], glossary: snippets.Glossary, rare_rate: float = 0.0
) -> Iterator[TrainRow]:
    """Yields an endless stream of supervised rows.

    Args:
      prompts: the same prompts that reinforcement learning uses.
      seed: of the stream.
      lengths: operations that a question may have.
      glossary: its held-out words appear in no lesson.
      rare_rate: share of the lessons in answering that do contain one of these words: with a small rate they are rare
        instead of unseen.
    """
    rng = random.Random(f"lessons {seed}")
    taught, rare = (snippets.questions(rng, lengths, glossary, hard=hard) for hard in (False, True))
    while True:
        if rng.random() < _ANSWER:
            question = next(rare if rng.random() < rare_rate else taught)
            right = snippets.steps(question, glossary.words)
            yield lesson(prompts, prompts.for_question(question), snippets.write(right))
        else:
            yield lesson(prompts, *_refine(rng, prompts, rng.choice(lengths), glossary))


def _refine(rng: random.Random, prompts: Prompts, length: int, glossary: snippets.Glossary):
    """Returns the prompt to refine a wrong program, and the right program.

    It is wrong where the words are coined, or in one place if none are.
    """
    names, words = snippets.pick_names(rng, length, glossary), dict(glossary.taught)
    wrong = [at for at in range(length) if rng.random() < _COINED]
    for at in wrong:
        names[at] = snippets.coin(rng, glossary)
        words[names[at]] = rng.choice(snippets.operations())
    question = snippets.ask(names)
    right = snippets.steps(question, words)
    attempt = list(right)
    for at in wrong or [rng.randrange(length)]:
        attempt[at] = rng.choice([step for step in snippets.operations() if step != right[at]])
    feedback = snippets.feedback(attempt, right, snippets.pick_inputs(question))
    (kind,) = rng.choices(list(_FORMATS), list(_FORMATS.values()))
    critique = {
        "value": texts.of_tests(False, feedback),
        "no value": texts.of_tests(False, feedback, reveal_value=False),
        "verdict": texts.indicative(False),
        "none": None,
    }[kind]
    return prompts.for_refinement(question, snippets.write(attempt), critique)[0], snippets.write(right)
