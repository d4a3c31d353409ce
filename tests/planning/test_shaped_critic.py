"""A critic that learns, in a plan: what it keeps beside the policy, and what it runs."""

import jax
import plan_cases
import planned
import pytest
from plan_cases import ADAM, SAMPLING, TRAINED

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.planning import programs
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.runs.variants import Variants

model = plan_cases.model  # the fixture
LEARNS = {"critic.train": True, "critique.num_per_response": 2, "critique.when": "all"}
ADAPTER = {"critic.training.weights": "adapter", "critic.training.rank": 4}


def programs_of(model, **changes):
    mesh = sharding.make_mesh(replica=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "splits", lambda mesh: False)
        return programs.of(run_settings(planned.config(model, **LEARNS | changes), mesh))


def names(found):
    return [call.name for call in found.calls]


def bytes_of(found, name):
    return found.buffers[name].bytes if name in found.buffers else 0


def test_one_that_shares_the_policys_weights_adds_an_optimiser_and_its_updates(model):
    without = programs_of(model, **{"critic.train": False})
    found = programs_of(model)
    assert names(found) == [*names(without), "critic_old_logp", "critic_update", "critic_update"]
    added = found.buffers.keys() - without.buffers.keys()
    assert added == {"critic_optimizer", "critic_gradients"} and bytes_of(found, "critic_optimizer") == ADAM
    assert not any(name.startswith("critic") for name in without.buffers)
    score, accumulate, apply = found.calls[-3:]
    # 24 responses of 2 critiques, whose prompt is there once: 59 + 2 x 12 in a token row of 72: two token rows each.
    assert score.per_iteration == accumulate.repeated * accumulate.times == 12
    assert (accumulate.per_iteration, apply.per_iteration) == (2, 2)
    assert accumulate.args[3].rco_B is not None and accumulate.args[3].tokens_RS.shape[-1] == 72
    assert "trained" in accumulate.own and "optimizer" in accumulate.beside and "critic_optimizer" in accumulate.beside
    update = next(call for call in found.calls if call.name == "update")
    assert "critic_optimizer" in update.beside and "critic_gradients" not in update.beside


def test_an_adapter_writes_with_a_copy_of_its_own(model):
    found = programs_of(model, **ADAPTER)
    by_name = {call.name: call for call in found.calls}
    assert {"critic_prefill", "critic_decode", "critic_reshard", "critic_old_logp", "critic_update"} <= by_name.keys()
    assert bytes_of(found, "critic") == SAMPLING
    assert 0 < bytes_of(found, "critic_trained") < TRAINED / 2 and bytes_of(found, "critic_optimizer") < ADAM / 2
    assert {"critic_trained", "trained", "critic"} <= set(by_name["critic_reshard"].own)
    update = by_name["update"]
    assert "critic" not in update.beside and "generation" not in update.beside  # both go before it
    assert {"critic_trained", "critic_optimizer"} <= set(update.beside)
    assert "critic" in by_name["decode"].beside


def test_a_model_has_its_own_shape(model, tmp_path):
    critic = planned.describe(tmp_path / "critic", num_hidden_layers=3, hidden_size=16)
    more = {"critic.kind": "folder", "critic.folder": critic, "critic.training.weights": "model"}
    found = programs_of(model, **more)
    calls = [call for call in found.calls if call.is_critics]
    assert [call.name for call in calls] == ["critic_reshard", "critic_old_logp", "critic_update", "critic_update"]
    assert calls[1].args[0]["layers"]["q"].shape == (3, 16, 4, 8)
    frozen = programs_of(model, **more | {"critic.train": False})
    assert bytes_of(found, "critic") == bytes_of(frozen, "critic")
    # Float32 and cut over two, where the copy is bfloat16 and whole; of norms, which are not cut, twice as much.
    assert bytes_of(found, "critic") < bytes_of(found, "critic_trained") < 1.1 * bytes_of(found, "critic")


@pytest.mark.parametrize("changes", [{}, ADAPTER], ids=["shared", "adapter"])
def test_its_memory_is_in_the_plan(model, monkeypatch, changes):
    """The optimiser's column of an update has both states, and so has the peak of each phase."""
    planned.pretend(monkeypatch)
    plans = {}
    for learns in (False, True):
        config = planned.config(model, **LEARNS | changes | {"critic.train": learns})
        plans[learns] = planner_lib.Planner(Variants(config), planned.NAME).plan(costs=False)
    found, without = ({one.name: one for one in plans[learns].programs} for learns in (True, False))
    assert {"critic_old_logp", "critic_update"} <= found.keys() - without.keys()
    more = found["update"].hbm_bytes["optimizer"] - without["update"].hbm_bytes["optimizer"]
    assert more == (ADAM if not changes else pytest.approx(ADAM / 3, rel=0.9)) and more > 0
    for phase in ("prefill", "decode", "update"):
        assert plans[True].phases[phase] > plans[False].phases[phase]


def test_costs_are_of_its_own_layers(model, tmp_path, monkeypatch):
    """Extrapolated to the three layers of the critic, not to the five of the policy."""
    planned.pretend(monkeypatch)
    critic = planned.describe(tmp_path / "critic", num_hidden_layers=3)
    more = {"critic.kind": "folder", "critic.folder": critic, "critic.training.weights": "model"}
    plan = planner_lib.Planner(Variants(planned.config(model, **LEARNS | more)), planned.NAME).plan()
    cost = {one.name: one.cost for one in plan.programs}
    assert 0 < cost["critic_reshard"].flops < cost["reshard"].flops
