"""Whether the longest question's prompts fit is known before a run starts, with each kind of critique."""

import dataclasses

import pytest
import rollout_cases
from chain_prompts import CHAINS, make
from scripted_rollouts import PROBLEMS, TOKENIZER

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import load_questions, stages

LONG = "{question}\n" + "1+1=2 " * 60
# The template of one kind alone has no room; what it shows takes up to 8 tokens.
TEMPLATES = {
    "hint": {"hint": "{question}{answer}", "refine_with_hint": LONG + "{hint}"},
    "cot": {"refine": LONG + "{response}{critique}"},
    "indicative": {"refine": LONG + "{response}{critique}"},
    "none": {"refine_without_critique": LONG + "{response}"},
}
KINDS = sorted(TEMPLATES)


def check(kind, templates, schedule=()):
    prompts = make(
        TOKENIZER, 200, **(CHAINS | TEMPLATES["hint"] | {"refine_with_hint": "{question}{hint}"} | templates)
    )
    values = {"critique.kind": kind, "critique.schedule": schedule, "critic.sees": "answer", "critic.max_length": 8}
    config = config_lib.replaced(config_lib.Config(), values | {"refine.max_prompt_length": 200})
    load_questions._check_refine_prompt(config, stages.of_training(config), prompts, PROBLEMS, critic=prompts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("later", [False, True])
def test_a_refine_prompt_without_room_is_refused_at_the_start(kind, later):
    first, schedule = ("cot" if kind != "cot" else "hint", ((3, kind),)) if later else (kind, ())
    with pytest.raises(UserError, match="the refine prompt of the longest question, problem 0, needs .* raise it"):
        check(first, TEMPLATES[kind], schedule)


@pytest.mark.parametrize(
    "kind, other", [("hint", "cot"), ("hint", "none"), ("none", "hint"), ("cot", "hint"), ("indicative", "none")]
)
def test_what_the_run_never_shows_needs_no_room(kind, other):
    check(kind, TEMPLATES[other])


@pytest.mark.parametrize(
    ("refiner", "policy", "said"),
    [
        (True, False, "the refine prompt of the longest"),
        (False, True, "the refine prompt of the teacher, of the longest"),
    ],
)
def test_prompts_of_a_refiner_and_of_a_teacher_are_each_checked(refiner, policy, said):
    prompts, other = (
        make(TOKENIZER, 200, **(CHAINS | (TEMPLATES["indicative"] if is_long else {}))) for is_long in (policy, refiner)
    )
    values = {"critique.kind": "indicative", "distil.kind": "alone", "refine.max_prompt_length": 200}
    config = config_lib.replaced(config_lib.Config(), values)
    asks = stages.of_training(config)
    with pytest.raises(UserError, match=said):
        load_questions._check_refine_prompt(config, asks, prompts, PROBLEMS, critic=None, refiner=other)


def test_the_room_of_a_teachers_own_prompt_is_checked_beside_that_of_refinements():
    prompts = make(TOKENIZER, 200, **CHAINS, teacher=LONG + "{critique}")
    values = {"critique.kind": "indicative", "critique.when": "all", "refine.max_prompt_length": 200}
    for kind, refine in (("added", "policy"), ("alone", "none")):
        config = config_lib.replaced(config_lib.Config(), values | {"distil.kind": kind, "refine.kind": refine})
        with pytest.raises(UserError, match="the refine prompt of the teacher, of the longest"):
            load_questions._check_refine_prompt(config, stages.of_training(config), prompts, PROBLEMS, critic=None)
    config = config_lib.replaced(config_lib.Config(), values)
    load_questions._check_refine_prompt(config, stages.of_training(config), prompts, PROBLEMS, critic=None)


def test_the_room_of_a_verdict_prompt_is_checked_by_training_alone():
    prompts = dataclasses.replace(make(TOKENIZER, 200, **CHAINS), max_prompt_length=8)
    values = {"critique.kind": "none", "verdict_share": 0.5, "questions_per_iteration": 2}
    config = config_lib.replaced(config_lib.Config(), values)
    for of in (stages.of_evaluation, stages.of_sample):
        load_questions._check_refine_prompt(config, of(config), prompts, PROBLEMS, critic=None)
    with pytest.raises(UserError, match="max_prompt_length"):
        load_questions._check_refine_prompt(config, stages.of_training(config), prompts, PROBLEMS, critic=None)


def test_verdict_problems_of_rows_are_said_to_be_left_out(tmp_path, capsys):
    rows = [*rollout_cases.make(), rollout_cases.verdict()]
    rollouts.write(tmp_path / rollouts.file_name(0), rows, iteration=0, spell=rollout_cases.spell)
    config = config_lib.replaced(config_lib.Config(), {"collect.rows": str(tmp_path)})
    assert load_questions._given(config, stages.of_collection(config)).problems == rollout_cases.PROBLEMS
    assert "1 verdict problems are left out" in capsys.readouterr().err
