import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, facts
from cgrpo_jax.runs import config as config_lib


def of(**changes):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    return facts.of(config_lib.freeze(config))


def test_what_a_configuration_says():
    found = of(**{"objective.gamma": 0.5, "refine.kind": "none"})
    assert (found.gamma, found.refine, found.trainer_logp) == (0.5, "none", False)
    assert found.changed == {"objective.gamma": 0.5, "refine.kind": "none"}
    assert found.values["num_responses"] == found.num_responses == 7


def test_the_trainers_probabilities_are_kept_where_they_are_pi_old():
    assert of(**{"objective.tis_cap": 2.0}).trainer_logp and of(**{"objective.old_logp": "trainer"}).trainer_logp


def test_seeds_do_not_tell_arms_apart():
    runs = [of(seed=0), of(seed=1, num_responses=8), of(seed=2)]
    assert facts.differing(runs) == ["num_responses"] and facts.differing(runs, apart=()) == ["seed", "num_responses"]


def test_the_warm_start_of_a_seed_tells_no_arms_apart():
    seeds = [of(**{"seed": seed, "model.init": f"warm_start/seed{seed}"}) for seed in range(2)]
    arms = [of(**{"seed": seed, "model.init": f"warm_start/seed{seed}", "num_responses": 8}) for seed in range(2)]
    assert facts.differing(seeds) == [] and facts.differing([*seeds, *arms]) == ["num_responses"]
    two = [of(**{"model.init": name}) for name in ("a", "b")]
    assert facts.differing(two) == ["model.init"]  # of one seed


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"there is no run in .*; give the folder of a run\."):
        facts.read(tmp_path)
