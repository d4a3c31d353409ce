"""Which keys go together where a critic learns, and what its learner is made of."""

import pytest

from cgrpo_jax.runs import build_training, stages, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.training.critic_rows import CriticTraining

GOOD = {
    "critic.train": True,
    "critique.kind": "cot",
    "critique.when": "all",
    "critique.num_per_response": 4,
}
FOLDER = {"critic.kind": "folder", "critic.folder": "critic"}


def changed(changes):
    return config_lib.replaced(config_lib.Config(), GOOD | changes)


@pytest.mark.parametrize("loss", ["rco", "policy_gradient"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora.rank": 8},
        {"critic.training.weights": "adapter"},
        {"critic.training.weights": "model"} | FOLDER,
        {"critic.training.weights": "model", "lora.rank": 8} | FOLDER,
        {"critic.training.verdict_weight": 0.0, "critique.when": "refining"},
        {"refine.which": "all", "refine.max_pass": 1.0, "critique.when": "refining"},
    ],
    ids=str,
)
def test_what_goes_together(changes, loss):
    assert not list(validate.violations(changed(changes | {"critic.training.loss": loss})))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"critique.num_per_response": 1}, "critique.num_per_response is 1; use at least 2, such as 4."),
        (
            {"critique.when": "refining"},
            "critic.training.verdict_weight 0.5 rewards verdicts on failed responses alone, and so to call all of them "
            'wrong; set critique.when to "all", or it to 0.',
        ),
        ({"critique.kind": "indicative"}, "critic.train True needs critique.kind 'cot', not 'indicative'"),
        ({"critique.schedule": ((0, "indicative"), (5, "cot"))}, "needs critique.kind 'cot', not 'indicative'"),
        ({"refine.kind": "none"}, "critic.train True needs refine.kind 'policy', not 'none'"),
        ({"refine.kind": "solution", "data.solution_key": "s"}, "needs refine.kind 'policy', not 'solution'"),
        ({"reward_source": "critic"}, "critic.train True needs reward_source 'verifier', not 'critic'"),
        ({"critique.corruption": "shuffled"}, "critic.train True needs critique.corruption 'none', not 'shuffled'"),
        (FOLDER, "critic.training.weights 'policy' needs critic.kind 'policy', not 'folder': they are the policy's."),
        (FOLDER | {"critic.training.weights": "adapter"}, "weights 'adapter' needs critic.kind 'policy', not 'folder'"),
        ({"critic.training.weights": "model"}, "critic.training.weights 'model' needs critic.kind 'folder'"),
        (
            {"critic.kind": "endpoint", "critic.endpoint.url": "http://x/v1", "critic.endpoint.model": "m"},
            "critic.training.weights 'policy' needs critic.kind 'policy', not 'endpoint'",
        ),
        ({"critic.training.weights": "adapter", "lora.rank": 8}, "weights 'adapter' needs lora.rank 0, not 8"),
        ({"critic.temperature": 0.0}, "critic.temperature 0 writes the same critique of a response each time"),
        (
            {
                "num_iterations": 5,
                "optimizer.updates_per_batch": 8,
                "optimizer.warmup_updates": 10,
                "optimizer.schedule": "cosine",
            },
            "warmup_updates 10 leaves optimizer.schedule 'cosine' none of the critic's 10 updates to fall over",
        ),
        ({"critic.training.beta": 0.0}, "critic.training.beta 0.0 can't divide; use a positive one, such as 0.1."),
        ({"critic.training.loss": "dpo"}, "critic.training.loss 'dpo' is unknown; use one of rco, policy_gradient."),
        ({"critic.training.verdict_weight": -1.0}, "critic.training.verdict_weight -1.0 is negative"),
    ],
    ids=str,
)
def test_what_does_not_is_refused_in_one_line(changes, message):
    (found,) = validate.violations(changed(changes))
    assert message in found and "\n" not in found


@pytest.mark.parametrize(
    "changes",
    [
        {"critic.temperature": 0.0},
        {"critique.num_per_response": 1},
        {"refine.kind": "none"},
        {"critique.kind": "indicative"},
        {"critique.when": "refining"},
        {"reward_source": "critic"},
    ],
    ids=str,
)
def test_a_critic_that_has_learnt_is_asked_otherwise_too(changes):
    """An evaluation at temperature 0, a sample without refinements: what learning needs is asked of training alone."""
    assert not list(validate.violations(changed(changes), trains=False))
    (found,) = validate.violations(changed(changes))
    assert "critic." in found


def test_whose_weights_they_are_is_asked_of_every_command():
    (found,) = validate.violations(changed(FOLDER), trains=False)
    assert "critic.training.weights 'policy' needs critic.kind 'policy'" in found


def test_flags_that_nothing_reads_are_refused():
    off = config_lib.replaced(config_lib.Config(), {"critic.training.beta": 1.0})
    (found,) = validate.unread(off, {"critic.training.beta": 1.0})
    assert found.startswith("critic.training.beta 1.0 changes nothing while critic.train is False")
    on = changed({"critique.max_retries": 5, "critic.training.rank": 4})
    retries, rank = validate.unread(on, {"critique.max_retries": 5, "critic.training.rank": 4})
    assert "changes nothing while critic.train is True" in retries
    assert "changes nothing while critic.training.weights is 'policy'" in rank
    (found,) = validate.unread(on, {"critic.train": True}, finetunes=True)
    assert "cgrpo finetune does not read it" in found


def test_without_it_nothing_learns():
    assert build_training.critic_settings(config_lib.Config()) is None
    assert not stages.of_training(config_lib.Config()).critic_learns


@pytest.mark.parametrize("command", [stages.of_evaluation, stages.of_finetuning, stages.of_collection])
def test_other_commands_train_no_critic(command):
    assert stages.of_training(changed({})).critic_learns and not command(changed({})).critic_learns


def test_what_its_learner_is_made_of():
    """Its rows are as long as its prompts and critiques; beta is RCO's own, or the KL term's coefficient."""
    changes = {
        "critic.max_length": 100,
        "critic.max_prompt_length": 900,
        "critic.temperature": 0.7,
        "pass_threshold": 0.5,
    }
    rco = build_training.critic_settings(changed(changes))
    assert rco.training == CriticTraining("rco", "policy", 0.1, 0.5, 0.5)
    shape, loss = rco.learner.shape, rco.learner.loss
    assert (shape.pack_length, shape.from_rows, loss.max_length, loss.temperature) == (1000, True, 100, 0.7)
    assert loss.kl_coef == 0 and rco.learner.proximal and not rco.learner.has_reference
    more = {"critic.training.loss": "policy_gradient", "critic.training.beta": 0.3}
    gradient = build_training.critic_settings(changed(changes | more)).learner
    assert (gradient.loss.kl_coef, gradient.shape.from_rows, gradient.has_reference) == (0.3, False, False)


def test_its_ratio_has_bounds_of_its_own():
    """It is each token's, whatever the policy's: GSPO's bounds are of a sequence's mean, and would stop its tokens."""
    bounds = {"objective.clip_low": 3e-4, "objective.clip_high": 4e-4}
    gspo = {"objective.initial_ratio": "sequence", "objective.aggregate": "sequence_mean"} | bounds
    gspo |= {"critic.training.loss": "policy_gradient"}
    loss = build_training.critic_settings(changed(gspo)).learner.loss
    assert (loss.initial_ratio, loss.clip_low, loss.clip_high) == ("token", 0.2, 0.2)
    assert loss.clip_initial
    own = build_training.critic_settings(changed(gspo | {"critic.training.clip_high": 0.28})).learner.loss
    assert (own.clip_low, own.clip_high) == (0.2, 0.28)


def test_whose_adapters_are_trained():
    adapters = {}
    for name, changes in {
        "shared": {"lora.rank": 8, "lora.alpha": 4.0, "lora.targets": ("q",)},
        "own": {"critic.training.weights": "adapter", "critic.training.rank": 4, "critic.training.alpha": 2.0},
        "none": {"critic.training.weights": "model", "lora.rank": 8} | FOLDER,
    }.items():
        adapters[name] = build_training.critic_settings(changed(changes)).learner.adapters
    assert (adapters["shared"].rank, adapters["shared"].targets) == (8, ("q",))
    assert (adapters["own"].rank, adapters["own"].scale, len(adapters["own"].targets)) == (4, 0.5, 7)
    assert adapters["none"] is None
