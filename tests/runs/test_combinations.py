"""Which values go together: every pair of choices is allowed and computed, or refused by a row of a table."""

import itertools

import numpy as np
import pytest
from scripted_rollouts import response, row

from cgrpo_jax import groups, objective, ratios
from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.runs import build_training, settings, validate
from cgrpo_jax.runs import config as config_lib

# Pairs are of a run that could have any of them.
BASE = {
    "objective.old_logp": "trainer",
    "objective.kl_coef": 0.1,
    "critic.sees": "answer",
    "critique.when": "all",
    "rewards": ("math", "exact"),
    "reward_weights": (1.0, 0.5),
    "refine.max_pass": 0.5,
}
CHOICES = {
    "objective.initial_ratio": ("token", "sequence", "cispo"),
    "objective.refined_ratio": ("shaped", "importance", "plain", "logp"),
    "objective.baseline": ("group", "initial"),
    "objective.scale_by_std": (False, True),
    "objective.mask_truncated": (False, True),
    "objective.length_penalty": (0.0, 0.5),
    "objective.clip_initial": (True, False),
    "objective.clip_refined": (False, True),
    "objective.aggregate": objective.AGGREGATES,
    "objective.kl": ("k1", "k2", "k3"),
    "objective.old_logp": ("trainer", "sampler"),
    "refine.which": ("failed", "all"),
    "refine.select": ("best", "random"),
    "refine.group": ("append", "replace"),
    "normalize_rewards": (False, True),
    "critique.kind": ("cot", "indicative", "hint"),
    "critique.corruption": ("none", "inverted", "shuffled"),
    "distil.kind": ("none", "added"),
    "distil.which": ("failed", "all"),
    "distil.divergence": tuple(ratios.DIVERGENCES),
}
REFUSED = [
    {"objective.refined_ratio": "importance", "objective.old_logp": "sampler"},
    {"objective.refined_ratio": "plain", "objective.clip_refined": True},
    {"objective.refined_ratio": "logp", "objective.clip_refined": True},
    {"objective.initial_ratio": "cispo", "objective.clip_initial": False},
    {"objective.baseline": "initial", "objective.scale_by_std": True},
    {"objective.baseline": "initial", "refine.group": "replace"},
    {"objective.aggregate": "paper", "refine.group": "replace"},
    {"critique.kind": "hint", "critique.corruption": "inverted"},
    {"normalize_rewards": True, "objective.scale_by_std": True},
    {"normalize_rewards": True, "objective.length_penalty": 0.5},
    {"critique.corruption": "inverted", "reward_source": "critic"},
    {"critique.corruption": "shuffled", "reward_source": "critic"},
    {"critique.kind": "hint", "distil.kind": "added"},
]
# With it most of what trains otherwise is refused; BASE has a KL term and refinements.
ALONE = {"distil.kind": "alone", "refine.kind": "none", "objective.kl_coef": 0.0}
REFUSED_ALONE = [
    {"refine.kind": "policy"},
    {"refine.kind": "solution"},
    {"objective.kl_coef": 0.1},
    {"objective.entropy_coef": 0.01},
    {"objective.tis_cap": 2.0},
    {"critique.when": "refining"},
    {"critique.kind": "hint"},
    {"critique.kind": "none"},
]


def config(changes):
    return config_lib.replaced(config_lib.Config(), BASE | changes)


def compute(config):
    """Takes a group of four to its loss; returns it."""
    grouping, loss = settings.grouping(config), build_training.loss_settings(config)
    also = (("exact", 0.5),)
    responses = [response(0, n, reward).replace(rewards=also) for n, reward in enumerate((0.0, 1.0, 0.0))]
    kept = [row(RowIndex(0, 2, stage=Stage.REFINEMENT), "56", reward=0.0, truncated=True, rewards=(("exact", None),))]
    (group,) = groups.reanchor([responses], kept, join=grouping.join)
    (rows,) = groups.train_rows([group], grouping)
    shape = len(rows), max(len(one.target_ids) for one in rows)
    mask = np.zeros(shape, bool)
    for number, one in enumerate(rows):
        mask[number, : len(one.target_ids)] = not one.masked
    logp = np.random.default_rng(0).uniform(-4, -0.2, shape).astype(np.float32)
    old = np.full(shape, -1.3, np.float32)
    return objective.policy_loss(
        logp,
        old,
        np.array([one.advantage for one in rows], np.float32),
        mask,
        np.array([one.refined for one in rows]),
        initial_ratio=loss.initial_ratio,
        refined_ratio=loss.refined_ratio,
        gamma=loss.gamma,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        clip_initial=loss.clip_initial,
        clip_refined=loss.clip_refined,
        aggregate=loss.aggregate,
        max_length=loss.max_length,
        num_questions=1,
        num_responses=loss.num_responses,
        num_refinements=loss.num_refinements,
        ref_logp_BT=old,
        kl_coef=loss.kl_coef,
        kl=loss.kl,
    )[0]


@pytest.mark.parametrize("one, two", itertools.combinations(CHOICES, 2), ids=lambda key: key.split(".")[-1])
def test_a_pair_of_choices_is_computed_or_refused(one, two):
    for first, second in itertools.product(CHOICES[one], CHOICES[two]):
        pair = {one: first, two: second}
        found = list(validate.violations(config(pair)))
        if pair in REFUSED:
            assert len(found) == 1 and found[0] in {need.unmet(_values(config(pair))) for need in validate.NEEDS}
            assert all(f"{key} {value!r}" in found[0] or f"not {value!r}" in found[0] for key, value in pair.items())
        else:
            assert not found
            assert np.isfinite(compute(config(pair)))


def test_every_row_of_the_tables_refuses_something():
    for need in validate.NEEDS:
        pairs = [*REFUSED, *(ALONE | one for one in REFUSED_ALONE)]
        assert any(need.unmet(_values(config(pair))) for pair in pairs), need


def test_what_distils_alone_goes_with_nothing_of_the_policys_loss():
    assert not list(validate.violations(config(ALONE)))
    for one in REFUSED_ALONE:
        (found,) = [text for text in validate.violations(config(ALONE | one)) if text.startswith("distil.kind 'alone'")]
        assert all(key in found for key in one)
    changes = {"objective.initial_ratio": "cispo", "objective.clip_low": 0.3, "objective.scale_by_std": True}
    found = list(validate.unread(config(ALONE | changes), changes))
    assert [text.partition(" ")[0] for text in found] == sorted(changes, key=list(_values(config({}))).index)


def test_what_distils_needs_critiques():
    values = {"distil.kind": "added", "critique.when": "refining"}
    assert not list(validate.violations(config(values)))
    (found,) = validate.violations(config(values | {"refine.kind": "none"}))
    assert found == (
        'distil.kind "added" needs critiques, which critique.when "refining" leaves out where refine.kind is \'none\'; '
        'set critique.when to "all".'
    )
    (found,) = validate.violations(config(values | {"distil.which": "all"}))
    assert found.startswith(
        'distil.which "all" is of responses that pass too, of which critique.when "refining" has no'
    )
    assert not list(validate.violations(config(values | {"distil.which": "all", "refine.which": "all"})))


def test_what_nothing_reads_is_not_refused():
    """An arm without refinements keeps the other arms' values of them."""
    for pair in REFUSED:
        found = list(validate.violations(config(pair | {"refine.kind": "none"})))
        read = {"objective.initial_ratio", "normalize_rewards", "distil.kind"}
        assert bool(found) == bool(read & pair.keys())


def test_an_arm_without_refinements_keeps_the_other_arms_values():
    values = {"refine.group": "replace", "refine.num_kept": 8, "num_responses": 7, "critique.kind": "hint"}
    values |= {"critic.sees": "nothing", "critique.when": "refining", "refine.which": "all", "refine.max_pass": 0.0}
    assert len(list(validate.violations(config(values)))) == 3
    assert not list(validate.violations(config(values | {"refine.kind": "none"})))


def test_the_tables_hold_for_every_kind_of_a_schedule():
    values = {"critique.kind": "cot", "critique.corruption": "inverted", "critique.schedule": ((5, "hint"),)}
    (found,) = validate.violations(config(values))
    assert found.startswith("critique.kind 'hint' needs critique.corruption 'none' or 'shuffled', not 'inverted'")
    unused = {"critique.kind": "hint", "critique.schedule": ((0, "cot"),), "critique.corruption": "inverted"}
    assert not list(validate.violations(config(unused)))


def test_a_cap_on_the_samplers_weight_needs_the_trainers_log_probabilities_too():
    values = {"objective.refined_ratio": "importance", "objective.old_logp": "sampler"}
    assert not list(validate.violations(config(values | {"objective.tis_cap": 2.0})))
    (found,) = validate.violations(config(values))
    assert "needs objective.old_logp 'trainer', or objective.tis_cap, not 'sampler'" in found


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"objective.refined_ratio": "importance", "objective.gamma": 0.3}, "objective.gamma"),
        ({"objective.refined_ratio": "logp", "objective.gamma": 0.3}, "objective.gamma"),
        ({"objective.initial_ratio": "cispo", "objective.clip_low": 0.1}, "objective.clip_low"),
        ({"objective.initial_ratio": "cispo", "objective.clip_low": 0.1, "objective.clip_refined": True}, None),
        ({"objective.initial_ratio": "cispo", "objective.clip_high": 4.0}, None),
        ({"objective.clip_initial": False, "objective.clip_low": 0.1}, "objective.clip_low"),
        ({"objective.clip_initial": False, "objective.clip_high": 0.1}, "objective.clip_high"),
        (
            {"objective.clip_initial": False, "objective.clip_refined": True, "objective.clip_high": 0.1},
            "objective.clip_high",
        ),
        ({"objective.clip_initial": False, "objective.clip_refined": True, "objective.clip_low": 0.1}, None),
        (
            {
                "objective.clip_initial": False,
                "objective.clip_refined": True,
                "objective.refined_ratio": "importance",
                "objective.clip_high": 0.1,
            },
            None,
        ),
        ({"refine.kind": "none", "critique.corruption": "inverted"}, "critique.corruption"),
        ({"refine.kind": "solution", "critique.corruption": "inverted"}, "critique.corruption"),
        ({"refine.kind": "solution", "refine.num_kept": 3}, "refine.num_kept"),
        ({"refine.kind": "solution", "refine.num_kept": 3, "objective.aggregate": "paper"}, None),
        ({"refine.kind": "solution", "refine.select": "random"}, "refine.select"),
        ({"refine.kind": "solution", "refine.per_critique": 3}, "refine.per_critique"),
        ({"critique.kind": "hint", "critique.max_retries": 3}, None),
    ],
)
def test_a_key_that_the_other_values_leave_without_effect_is_unread(changes, key):
    found = list(validate.unread(config(changes), changes))
    assert ([one.partition(" ")[0] for one in found] == [key]) if key else not found


@pytest.mark.parametrize(
    "changes",
    [
        {"objective.initial_ratio": "cispo", "objective.clip_low": 0.9},
        {"objective.clip_initial": False, "objective.clip_low": 0.9},
        {"objective.clip_initial": False, "objective.clip_refined": True, "objective.clip_high": 0.0},
        {"objective.refined_ratio": "importance", "objective.gamma": 9.0},
    ],
)
def test_what_is_unread_changes_no_loss(changes):
    (key,) = {one.partition(" ")[0] for one in validate.unread(config(changes), changes)}
    without = {name: value for name, value in changes.items() if name != key}
    assert compute(config(changes)) == compute(config(without))
    assert compute(config({key: changes[key]})) != compute(config({}))  # what is read does change it


def test_a_need_says_what_was_given_what_is_allowed_and_why():
    (found,) = validate.violations(config({"objective.refined_ratio": "plain", "objective.clip_refined": True}))
    assert found == (
        "objective.refined_ratio 'plain' needs objective.clip_refined False, not True: it is no ratio that a clip "
        "around 1 could hold."
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective.length_penalty_share": 0.0}, "objective.length_penalty_share 0.0 leaves no tokens for it to rise"),
        ({"objective.length_penalty_share": 1.5}, "objective.length_penalty_share 1.5 is not a share"),
        (
            {"refine.group": "replace", "refine.num_kept": 8},
            'refine.group "replace" puts refine.num_kept 8 refinements in the places of num_responses 7',
        ),
        ({"reward_weights": (1.0,)}, "reward_weights (1.0,) are 1 weights of 2 rewards; give one for each of rewards."),
        ({"rewards": ("math", "math")}, "rewards ('math', 'math') has two of one name, 'math', in metrics"),
        ({"rewards": ("math", "x")}, "rewards: grader 'x' is unknown; use one of math"),
        ({"gate": "numeric"}, "gate 'numeric' is none of rewards ('math', 'exact'); use one of them"),
        ({"grader.kind": "numeric"}, "grader.kind 'numeric' is none of rewards ('math', 'exact'), which decide"),
        ({"rewards": (), "reward_weights": (), "normalize_rewards": True}, "normalize_rewards divides each of several"),
        (
            {"refine.which": "all", "refine.max_pass": 0.0},
            'refine.which "all" is of responses that pass too, but refine.max_pass 0 refines no question that has one',
        ),
        (
            {"critique.kind": "hint", "critic.sees": "nothing"},
            'critique.kind "hint" is of the answer, but critic.sees is \'nothing\'; set it to "answer".',
        ),
    ],
)
def test_numbers_that_do_not_go_together(changes, message):
    (found,) = validate.violations(config(changes))
    assert found.startswith(message)


def _values(config):
    return {name: value for name, _, value in validate.keys.items(config)}
