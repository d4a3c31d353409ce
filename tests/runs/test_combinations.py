"""Which values go together: every pair of choices is allowed and computed, or refused by a row of a table."""

import functools
import itertools

import numpy as np
import pytest
from method_equations import loss_of
from scripted_rollouts import response, row

from cgrpo_jax import groups, objective, ratios
from cgrpo_jax.inference.critic import TAUGHT
from cgrpo_jax.records import LossKind, RowIndex, Stage
from cgrpo_jax.runs import build_training, settings, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.training import distillation, packing

# Pairs are of a run that could have any of them.
BASE = {
    "objective.old_logp": "trainer",
    "objective.kl_coef": 0.1,
    "critic.sees": "answer",
    "critique.when": "all",
    "rewards": ("math", "exact"),
    "reward_weights": (1.0, 0.5),
    "refine.max_pass": 0.5,
    "data.solution_key": "solution",
}
CHOICES = {
    "objective.initial_ratio": ("token", "sequence", "cispo"),
    "objective.refined_ratio": ("shaped", "importance", "plain", "logp"),
    "objective.baseline": ("group", "initial"),
    "objective.scale_by_std": (False, True),
    "objective.mask_truncated": (False, True),
    "objective.length_penalty": (0.0, 0.5),
    "objective.length_penalty_share": (0.2, 1.0),
    "objective.clip_initial": (True, False),
    "objective.clip_refined": (False, True),
    "objective.aggregate": objective.AGGREGATES,
    "objective.kl": ("k3", "k1", "k2"),
    "objective.kl_coef": (0.1, 0.0),
    "objective.entropy_coef": (0.0, 0.01),
    "objective.old_logp": ("trainer", "sampler"),
    "objective.tis_cap": (0.0, 2.0),
    "objective.tis_level": ("token", "sequence_mask"),
    "objective.gamma": (0.1, 0.5),
    "objective.clip_low": (0.2, 0.0),
    "objective.clip_high": (0.2, 0.3),
    "refine.kind": ("policy", "solution", "none"),
    "refine.max_pass": (0.5, 0.0),
    "refine.which": ("failed", "all"),
    "refine.per_critique": (1, 2),
    "refine.num_kept": (1, 2),
    "refine.select": ("best", "random"),
    "refine.group": ("append", "replace"),
    "refine.max_prompt_length": (10240, 0),
    "refine.drop_critique_mentions": (False, True),
    "normalize_rewards": (False, True),
    "critique.kind": ("cot", "indicative", "hint"),
    "critique.corruption": ("none", "inverted", "shuffled"),
    "refiner.folder": ("", "weak"),
    "refiner.temperature": (-1.0, 0.0),
    "refiner.top_p": (0.0, 0.9),
    "distil.kind": ("none", "added"),
    "distil.which": ("failed", "all"),
    "distil.divergence": tuple(ratios.DIVERGENCES),
    "distil.coef": (1.0, 0.5),
    "distil.top_tokens": (20, 3),
}
VERDICTS = {"critique.kind": "cot", "critique.when": "all"}
ONE_REWARD = {"rewards": (), "reward_weights": ()}
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
    {"critique.corruption": "inverted", "reward_source": "critic", **ONE_REWARD},
    {"critique.corruption": "shuffled", "reward_source": "critic", **ONE_REWARD},
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
# What a critic that learns goes without; other cases are in test_critic_training_section.py.
LEARNS = {"critic.train": True, "critique.num_per_response": 4}
REFUSED_LEARNING = [
    {"critique.kind": "indicative"},
    {"refine.kind": "none"},
    {"reward_source": "critic", **ONE_REWARD},
    {"critique.corruption": "shuffled"},
    {"critic.kind": "folder", "critic.folder": "other"},
    {"critic.training.weights": "model"},
    {"critic.training.weights": "adapter", "lora.rank": 8},
]
# By a rule of its section, which is no pair of names.
REFUSED_BY_RULE = [{"refine.which": "all", "refine.max_pass": 0.0}]


def config(changes):
    """Returns BASE's configuration with changes; one for all that have the same."""
    usual = {name: some[0] for name, some in CHOICES.items()}
    return _config(frozenset(one for one in changes.items() if one not in usual.items()))


@functools.cache
def _config(changes):
    return config_lib.replaced(config_lib.Config(), BASE | dict(changes))


@functools.cache
def found_in(config):
    return tuple(validate.violations(config))


def compute(config):
    """Takes a group of four to its loss; returns it."""
    taught = config.distil.which if config.distil.kind != "none" else "none"
    loss = build_training.loss_settings(config)
    return computed(settings.grouping(config), loss, taught, config.distil.top_tokens)


@functools.cache
def computed(grouping, loss, taught, top_tokens):
    also = (("exact", 0.5),)
    responses = [
        response(0, n, reward).replace(rewards=also, feedback_ids=np.arange(9) if TAUGHT[taught](reward >= 1) else None)
        for n, reward in enumerate((0.0, 1.0, 0.0))
    ]
    kept = [row(RowIndex(0, 2, stage=Stage.REFINEMENT), "56", reward=0.0, truncated=True, rewards=(("exact", None),))]
    (group,) = groups.reanchor([responses], kept, join=grouping.join)
    (rows,) = groups.train_rows([group], grouping)
    shape = len(rows), max(len(one.target_ids) for one in rows)
    old = np.full(shape, -1.3, np.float32)
    logp = np.random.default_rng(0).uniform(-4, -0.2, shape)
    sampler = np.random.default_rng(1).uniform(-2.6, -0.6, shape)
    of_policy = 0.0
    if any(one.loss == LossKind.POLICY for one in rows):
        of_policy = float(loss_of(loss, rows, logp, old, ref=old, entropy=-logp, sampler=sampler))
    return of_policy + (distilled(loss, rows, shape, top_tokens) if loss.distil_coef else 0.0)


def distilled(loss, rows, shape, top_tokens):
    """Returns the term of distillation of rows, from a policy and a teacher at random."""
    rng = np.random.default_rng(2)
    logits, teacher = rng.normal(size=(2, *shape, 1 + top_tokens)).astype(np.float32)
    teacher -= np.log(np.exp(teacher).sum(axis=-1, keepdims=True))
    distance = ratios.distance(logits, teacher, loss.divergence)
    length = np.array([len(one.target_ids) for one in rows])
    batch = packing.empty_batch(
        packing.PackShape(1, 16, len(rows), top_tokens=top_tokens), max_length=shape[1], num_groups=1
    ).replace(
        distil_B=np.array([one.feedback_ids is not None and not one.masked for one in rows]),
        alone_B=np.array([one.loss == LossKind.DISTIL for one in rows]),
    )
    value, stats = distillation.distil_loss(
        batch, np.arange(shape[1]) < length[:, None], distance, distance, coef=loss.distil_coef,
        aggregate=loss.aggregate, max_length=loss.max_length, num_rows=len(rows), num_tokens=int(length.sum()),
        num_questions=1, num_responses=loss.num_responses, num_refinements=loss.num_refinements,
    )  # fmt: skip
    assert stats["distil/tokens"] > 0
    return float(value)


def test_the_pairs_are_of_every_key_of_both_sections():
    known = {name for name, _, _ in validate.keys.items(config({})) if name.startswith(("refine.", "objective."))}
    assert known <= CHOICES.keys() and all(len(set(some)) > 1 for some in CHOICES.values())
    values = _values(config({}))
    assert [name for name, some in CHOICES.items() if values[name] != some[0]] == []


@pytest.mark.parametrize("one, two", itertools.combinations(CHOICES, 2), ids=lambda key: key.split(".")[-1])
def test_a_pair_of_choices_is_computed_or_refused(one, two):
    for first, second in itertools.product(CHOICES[one], CHOICES[two]):
        pair = {one: first, two: second}
        given = config(pair)
        found = found_in(given)
        if pair in REFUSED:
            assert len(found) == 1 and found[0] in {need.unmet(_values(given)) for need in validate.NEEDS}
            assert all(f"{key} {value!r}" in found[0] or f"not {value!r}" in found[0] for key, value in pair.items())
        elif pair in REFUSED_BY_RULE:
            assert len(found) == 1 and all(key in found[0] for key in pair)
        else:
            assert not found
            assert np.isfinite(compute(given))


def test_every_row_of_the_tables_refuses_something():
    for need in validate.NEEDS:
        pairs = [*REFUSED, *(ALONE | one for one in REFUSED_ALONE), *(LEARNS | one for one in REFUSED_LEARNING)]
        assert any(need.unmet(_values(config(pair))) for pair in pairs), need


@pytest.mark.parametrize("changes", REFUSED_LEARNING, ids=str)
def test_a_critic_that_learns_is_refused_what_teaches_it_nothing(changes):
    assert not list(validate.violations(config(LEARNS)))
    assert any(text.startswith("critic.train") for text in validate.violations(config(LEARNS | changes)))


def test_what_distils_alone_goes_with_nothing_of_the_policys_loss():
    assert not list(validate.violations(config(ALONE)))
    for one in REFUSED_ALONE:
        (found,) = [text for text in validate.violations(config(ALONE | one)) if text.startswith("distil.kind 'alone'")]
        assert all(key in found for key in one)
    changes = {"objective.initial_ratio": "cispo", "objective.clip_low": 0.3, "objective.scale_by_std": True}
    found = list(validate.unread(config(ALONE | changes), changes))
    assert [text.partition(" ")[0] for text in found] == sorted(changes, key=list(_values(config({}))).index)


def test_what_distils_is_computed():
    """Each key of it changes the loss; alone there is nothing of the policy's."""
    plain, added = compute(config({})), compute(config({"distil.kind": "added"}))
    found = {added}
    for name in (one for one in CHOICES if one.startswith("distil.") and one != "distil.kind"):
        changed = {name: CHOICES[name][1]}
        assert compute(config(changed)) == plain
        found.add(compute(config({"distil.kind": "added"} | changed)))
    assert len(found) == 5 and all(one > plain for one in found)
    assert compute(config({"distil.kind": "added", "distil.coef": 0.5})) - plain == pytest.approx((added - plain) / 2)
    alone = compute(config(ALONE))
    assert 0 < alone == compute(config(ALONE | {"objective.initial_ratio": "cispo"}))


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
        ({"refine.kind": "solution", "refiner.folder": "weak"}, "refiner.folder"),
        ({"refiner.temperature": 0.5}, "refiner.temperature"),
        ({"refiner.folder": "weak", "refiner.temperature": 0.5}, None),
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
            {"reward_source": "critic", **VERDICTS},
            "reward_source \"critic\" rewards by verdicts in the place of graders, but rewards is ('math', 'exact');",
        ),
        (
            {"verdict_share": 0.2},
            "verdict_share 0.2 rewards verdicts by one number, but rewards is ('math', 'exact'); leave rewards empty",
        ),
        ({"verdict_share": 0.6, **ONE_REWARD}, "verdict_share 0.6 asks about more responses than there are questions"),
        (
            {"verdict_share": 0.1, "questions_per_iteration": 4, **ONE_REWARD},
            "verdict_share 0.1 of questions_per_iteration 4 is less than half a question; raise one of them",
        ),
        (
            {"verdict_share": 0.2, "reward_source": "critic", **VERDICTS, **ONE_REWARD},
            'verdict_share 0.2 needs to know which responses are right, but reward_source is "critic"; set',
        ),
        ({"max_extra_questions": -1}, "max_extra_questions -1 is negative; use 0 or more"),
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
