"""What a run generates, and who generates it: numbers by hand."""

import pytest
import tiny_run

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import stages as stages_lib

# 4 questions, 3 responses to each, 2 critiques of each, 2 refinements after each.
MANY = {
    "critique.kind": "cot",
    "questions_per_iteration": 4,
    "num_responses": 3,
    "critique.num_per_response": 2,
    "refine.per_critique": 2,
}
FOLDER, ENDPOINT = (
    {"critic.kind": "folder", "critic.folder": "critic"},
    {"critic.kind": "endpoint", "critic.endpoint.url": "http://host/v1", "critic.endpoint.model": "m"},
)


def numbers(stages):
    return {one.stage: (one.by, one.num_prompts, one.num_texts) for one in stages.all}


def of(changes=None, make=stages_lib.of_training, **more):
    return make(tiny_run.config(MANY | (changes or {}), **more))


def test_each_stage_has_its_prompts_and_texts():
    found = of()
    assert numbers(found) == {
        Stage.RESPONSE: ("policy", 4, 12),
        Stage.REFINEMENT: ("policy", 24, 48),
        Stage.CRITIQUE: ("policy", 24, 24),
    }
    assert found.by("policy") == found.all and found.by("endpoint") == ()
    assert [one.num_tokens for one in found.all] == [12 * 16, 48 * 16, 24 * 16]


def test_questions_that_may_be_drawn_on_count():
    assert numbers(of(max_extra_questions=2))[Stage.RESPONSE] == ("policy", 6, 18)
    assert numbers(of(max_extra_questions=2))[Stage.CRITIQUE] == ("policy", 36, 36)
    assert numbers(of({"verdict_share": 0.5}))[Stage.RESPONSE] == ("policy", 4, 12)  # these are of the four


@pytest.mark.parametrize("critic, who", [(FOLDER, "folder"), (ENDPOINT, "endpoint")])
def test_a_critic_takes_critiques_from_the_policy(critic, who):
    found = of(critic)
    assert found.critic == who and found.by(who) == (found.critique,)
    assert [one.stage for one in found.by("policy")] == [Stage.RESPONSE, Stage.REFINEMENT]
    assert found.critic_folder == critic.get("critic.folder", "")


def test_a_rule_leaves_no_critiques_to_a_model():
    assert set(numbers(of({"critique.kind": "indicative"}))) == {Stage.RESPONSE, Stage.REFINEMENT}
    assert set(numbers(of({"critique.kind": "indicative", "critique.schedule": ((5, "cot"),)}))) == set(Stage)


def test_hints_are_written_as_critiques_are():
    written = of({"critique.kind": "hint", "critic.sees": "answer"})
    assert numbers(written) == numbers(of({})) and written.kinds == {"hint"}


def test_plain_grpo_critiques_only_where_all_are():
    assert set(numbers(of({"refine.kind": "none"}))) == {Stage.RESPONSE}
    assert numbers(of({"refine.kind": "none", "critique.when": "all"}))[Stage.CRITIQUE] == ("policy", 24, 24)


def test_verdicts_as_rewards_are_asked_of_refinements_too():
    found = of({"critique.when": "all"}, reward_source="critic")
    assert numbers(found)[Stage.CRITIQUE] == ("policy", 24 + 48 * 2, 24 + 48 * 2)


def test_kinds_follow_the_schedule():
    found = of({"critique.kind": "indicative", "critique.schedule": ((2, "execution"), (5, "cot"))})
    assert [found.kind_at(i) for i in (0, 1, 2, 4, 5)] == ["indicative"] * 2 + ["execution"] * 2 + ["cot"]
    assert found.kinds == {"indicative", "execution", "cot"}
    assert of(
        {"critique.kind": "indicative", "critique.schedule": ((2, "cot"),)}, num_iterations=9, make=stages_lib.of_sample
    ).kinds == {"cot"}


def test_an_evaluation_has_the_room_of_training_and_asks_no_critic():
    training, evaluation = of(FOLDER), of(FOLDER, make=stages_lib.of_evaluation)
    assert evaluation.by("policy") == training.by("policy")
    assert training.asks_critic and not evaluation.asks_critic


def test_test_time_refinement_needs_a_critic_that_writes():
    found = of(
        {"refine.kind": "none", "critique.schedule": ((0, "indicative"),)}, make=stages_lib.of_test_time_refinement
    )
    assert found.refine == "policy" and found.kinds == {"cot"}
    with pytest.raises(UserError, match="critique 'execution' is made by a rule that knows the reward"):
        of({"critique.kind": "execution"}, make=stages_lib.of_test_time_refinement)
    with pytest.raises(UserError, match="critique 'hint' is of the answer, which no test has"):
        of({"critique.kind": "hint", "critic.sees": "answer"}, make=stages_lib.of_test_time_refinement)


def test_a_diagnosis_asks_the_critic_only_for_what_it_writes():
    both = of(ENDPOINT | {"diagnosis.kinds": ("indicative", "cot")}, make=stages_lib.of_diagnosis)
    assert both.critic == "endpoint" and both.kinds == {"cot"} and both.refine == "policy"
    rules = of(ENDPOINT | {"diagnosis.kinds": ("execution", "indicative")}, make=stages_lib.of_diagnosis)
    assert rules.critic == "policy" and rules.kinds == {"execution"}


def test_a_collection_has_its_own_numbers_and_the_last_kind_of_critique():
    changes = {"collect.num_responses": 3, "collect.num_critiques": 4, "collect.num_refinements": 5}
    changes |= {"critique.kind": "execution", "critique.schedule": ((50, "cot"),), "refine.kind": "none"}
    found = of(FOLDER | changes | {"num_iterations": 100}, make=stages_lib.of_collection)
    questions = found.response.num_prompts
    assert found.kinds == {"cot"} and found.critic == "folder" and found.asks_critic and not found.rows
    numbers = [one.num_texts // questions for one in (found.response, found.critique, found.refinement)]
    assert numbers == [3, 3 * 4, 3 * 4 * 5]
    assert of(make=stages_lib.of_collection).response.num_texts == of().response.num_texts  # as in training


def test_a_collection_asks_nobody_for_what_it_does_not_write():
    none = {"collect.num_critiques": 0, "collect.num_refinements": 0}
    for changes in (none, none | {"collect.rows": "rows", "collect.num_refinements": 1}):
        found = of(FOLDER | {"critique.kind": "cot"} | changes, make=stages_lib.of_collection)
        assert (found.asks_critic, found.critic, found.critic_folder, found.critique.num_texts) == (
            False,
            "policy",
            "",
            0,
        )
        assert bool(found.refinement.num_texts) == bool(changes["collect.num_refinements"])
    assert found.rows == "rows"
    refined = of({"refiner.folder": "strong", "collect.num_critiques": 0}, make=stages_lib.of_collection)
    assert refined.asks_refiner and refined.refiner_folder == "strong" and not refined.asks_critic
    rules = of(FOLDER | {"critique.kind": "execution"}, make=stages_lib.of_collection)
    assert (rules.asks_critic, rules.critic, rules.kinds) == (False, "policy", {"execution"})


def test_several_critiques_by_a_rule_are_refused():
    changes = {"critique.kind": "execution", "collect.num_critiques": 2}
    with pytest.raises(UserError, match="collect.num_critiques 2 of critique.kind 'execution' would be the same text"):
        of(changes, make=stages_lib.of_collection)


@pytest.mark.parametrize("kind", ["none", "hint"])
def test_critiques_of_rows_that_would_not_be_shown_are_refused(kind):
    changes = {"critique.kind": kind, "critic.sees": "answer", "collect.rows": "rows", "collect.num_critiques": 0}
    said = f"collect.num_critiques 0 refines after the critiques of collect.rows, but critique.kind '{kind}' shows no"
    with pytest.raises(UserError, match=said):
        of(changes, make=stages_lib.of_collection)
    responses = changes | {"collect.rows": "", "collect.num_refinements": 0}
    assert not of(responses, make=stages_lib.of_collection).refinement.num_texts


def test_training_alone_has_verdict_problems():
    changes = {"verdict_share": 0.5}
    assert of(changes).judges and not of().judges
    for make in ("finetuning", "evaluation", "test_time_refinement", "diagnosis", "collection", "sample"):
        assert not of(changes, make=getattr(stages_lib, f"of_{make}")).judges


def test_a_stage_that_exceeds_the_context_is_named():
    with pytest.raises(UserError, match=r"is 48 \+ 16, more than the 63 tokens of context that the critic has; lower"):
        stages_lib.check_lengths(of().all, "the critic", 63)
    stages_lib.check_lengths(of().all, "the critic", 64)
