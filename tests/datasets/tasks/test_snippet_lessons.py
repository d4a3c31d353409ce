"""The code task's lessons: no held-out word leaks into them, critiques are the grader's, all formats teach alike."""

import functools
import itertools
import json
import re

import numpy as np
import pytest
from chain_prompts import CHAINS, make

from cgrpo_jax.critiques import texts as texts_lib
from cgrpo_jax.datasets.tasks import snippet_lessons, snippets
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import LossKind
from cgrpo_jax.rewards import grader
from cgrpo_jax.runs import model_source

GLOSSARY = snippets.make_glossary(8)
TOKENIZER = load_tokenizer(model_source.tokenizer_folder("snippets"))
PROMPTS = make(TOKENIZER, 160, **CHAINS)
OPERATION = re.compile(r"[a-d]([-+*])(\d+)")


@functools.cache
def rows(count, *, seed=0, rare_rate=0.0):
    stream = snippet_lessons.lessons(PROMPTS, seed=seed, lengths=(1, 2, 3), glossary=GLOSSARY, rare_rate=rare_rate)
    return list(itertools.islice(stream, count))


@functools.cache
def lessons(count=2000, **keywords):
    """(question, attempt or None, critique or None, target) of each lesson."""
    found = []
    for row in rows(count, **keywords):
        context, target = TOKENIZER.decode(row.context_ids), TOKENIZER.decode(row.target_ids)
        question, _, rest = context.partition("\nTried: ")
        attempt, _, critique = rest.removesuffix("\nTry again.").partition("\nCritique: ")
        found.append((question, attempt or None, critique or None, target))
    return found


def read(program):
    return [(op, int(number)) for op, number in OPERATION.findall(program.partition("return")[2])]


def known(question):
    return set(snippets.names_in(question)) & set(GLOSSARY.words)


def kind(critique):
    return "value" if "Expected" in (critique or "") else critique and critique.partition(" ")[0]


def test_no_lesson_has_a_held_out_word():
    words = {name for question, *_ in lessons() for name in snippets.names_in(question)}
    assert not words & set(GLOSSARY.held_out)
    assert words >= set(GLOSSARY.taught)
    assert not [word for word in GLOSSARY.held_out for row in lessons() if word in " ".join(filter(None, row))]


def test_held_out_words_are_as_rare_as_asked():
    found = [(attempt, bool(known(q) & set(GLOSSARY.held_out))) for q, attempt, *_ in lessons(rare_rate=0.1)]
    assert not any(rare for attempt, rare in found if attempt)
    assert 0.06 < np.mean([rare for attempt, rare in found if not attempt]) < 0.14


def test_lessons_are_supervised_rows_that_end_the_turn():
    prefix = TOKENIZER.generation_prefix_ids()
    for row in rows(200):
        assert row.loss == LossKind.NLL and row.advantage == 1.0 and not row.refined
        assert row.target_ids[-1] == TOKENIZER.end_of_turn_id
        assert 0 not in row.context_ids and 0 not in row.target_ids  # no unknown token
        assert tuple(row.context_ids[-len(prefix) :]) == prefix


def test_answers_are_the_questions():
    answers = [(question, target) for question, attempt, _, target in lessons() if attempt is None]
    assert len(answers) / len(lessons()) == pytest.approx(0.3, abs=0.04)
    assert all(target == snippets.write(snippets.steps(question, GLOSSARY.taught)) for question, target in answers)


def test_a_refinement_keeps_what_is_known_and_mends_what_is_wrong():
    coined = wrong = 0
    for question, attempt, _, target in lessons():
        if attempt is None:
            continue
        tried, right = read(attempt), read(target)
        assert target == snippets.write(right) and attempt == snippets.write(tried) and tried != right
        names = snippets.names_in(question)
        unknown = [" " not in name and name not in GLOSSARY.taught for name in names]
        for name, new, step in zip(names, unknown, right, strict=True):
            assert new or snippets.steps(snippets.ask([name]), GLOSSARY.taught) == [step]
        if any(unknown):  # these are what is wrong
            assert [a != b for a, b in zip(tried, right, strict=True)] == unknown
        else:
            assert sum(a != b for a, b in zip(tried, right, strict=True)) == 1
        coined += any(unknown)
        wrong += not any(unknown)
    assert coined > 600 and wrong > 200


def test_critiques_are_those_of_the_real_grader():
    """Of lessons in every format, with the tests that their right programs pass."""
    refined = [row for row in lessons() if row[1] and row[2]]
    chosen = [row for name in ("value", "Test", "The") for row in [r for r in refined if kind(r[2]) == name][:8]]
    golds = []
    for question, _, _, target in chosen:
        asserts = [f"assert f{v if len(v) > 1 else f'({v[0]})'} == {snippets.run(read(target), v)}"
                   for v in snippets.pick_inputs(question)]  # fmt: skip
        golds.append(json.dumps({"asserts": asserts}))
    assert all(grade.score == 1 for grade in grader.grade("code", [row[3] for row in chosen], golds))
    for (_, _, critique, _), grade in zip(chosen, grader.grade("code", [row[1] for row in chosen], golds), strict=True):
        assert grade.score == 0
        assert (
            critique
            == {
                "value": texts_lib.of_tests(False, grade.reason),
                "Test": texts_lib.of_tests(False, grade.reason, reveal_value=False),
                "The": texts_lib.indicative(False),
            }[kind(critique)]
        )


def test_the_same_lessons_come_in_every_format():
    kinds = [kind(critique) for _, attempt, critique, _ in lessons() if attempt]
    shares = {name: kinds.count(name) / len(kinds) for name in set(kinds)}
    assert shares == pytest.approx({"value": 6 / 9, "Test": 1 / 9, "The": 1 / 9, None: 1 / 9}, abs=0.03)
    for name in shares:
        found = [
            known(question) == set()
            for question, attempt, critique, _ in lessons()
            if attempt and kind(critique) == name
        ]
        assert np.mean(found) == pytest.approx(0.7, abs=0.15)


def test_the_seed_decides():
    texts = [[(TOKENIZER.decode(r.context_ids)) for r in rows(50, seed=seed)] for seed in (0, 1)]
    assert texts[0] != texts[1]
    again = snippet_lessons.lessons(PROMPTS, seed=0, lengths=(1, 2, 3), glossary=GLOSSARY)
    assert [TOKENIZER.decode(row.context_ids) for row in itertools.islice(again, 50)] == texts[0]
