"""What a start says of a critic that is trained beside the policy."""

import hf_folders
import pytest
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.models import params
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.runs import announce
from cgrpo_jax.runs.settings import run_settings

GIVEN = {"critic.train": True, "critique.kind": "cot", "critique.when": "all", "critique.num_per_response": 2}


@pytest.mark.parametrize("weights", ["policy", "adapter", "model"])
def test_whose_weights_by_which_loss_and_rate(tmp_path, weights, capsys):
    given, folder = GIVEN | {"critic.training.weights": weights, "critic.training.num_updates": 3}, tmp_path / "mine"
    if weights == "model":
        hf_folders.write_folder(folder, hf_folders.QWEN3 | {"max_position_embeddings": 256}, {})
        given |= {"critic.kind": "folder", "critic.folder": str(folder)}
    else:
        given |= {"critic.training.loss": "policy_gradient", "critic.training.beta": 0.02}
    settings = run_settings(tiny_run.config(given), sharding.one_device())
    announce.critic(settings, rate=1e-5)
    said = capsys.readouterr().err
    shape = hf_config.read_config(folder) if weights == "model" else settings.policy
    count, rank = params.num_params(shape), 16
    if weights == "adapter":
        width, layers, heads, kv = shape.embed_dim, shape.num_layers, shape.num_heads, shape.num_kv_heads
        sides = (
            [(width, heads * shape.head_dim)] * 2 + [(width, kv * shape.head_dim)] * 2 + [(width, shape.mlp_dim)] * 3
        )
        count = layers * rank * sum(a + b for a, b in sides)
    whose = {
        "policy": "the policy's own weights",
        "adapter": "an adapter on the policy's weights",
        "model": f"the weights of {folder}",
    }
    loss = "rco (beta 0.1" if weights == "model" else "policy_gradient (beta 0.02"
    assert said == (
        f"critic: trained beside the policy: {whose[weights]}, {count / 1e6:.1f} million parameters, by {loss}, "
        "verdicts weigh 0.5), 3 updates an iteration, learning rate 1e-05\n"
    )
