"""Critique-GRPO on Qwen3-8B that critiques itself and sees the answer for that (arXiv 2506.03106), n = 7 + 1.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:4x4 --zone=ZONE --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_8b.py --workdir=gs://BUCKET/qwen3_8b \\
        --config.model.folder=gs://BUCKET/Qwen3-8B --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

Topology: v6e:4x4, 16 chips on 4 hosts; tensor groups of 4, two of the 8 key/value heads each. Or v5p:2x2x4, v5e:8x8.
Memory, by `python -m cgrpo_jax.plan --config=configs/qwen3_8b.py --topology=v6e:4x4`:
19.0 of 31.3 GiB a chip at most, in prefill. On v5p:2x2x4 19.0 of 95.7, on v5e:8x8 14.6 of 15.8.
To reach: mean pass@1 of the paper's eight benchmarks 68.13, of its best checkpoint; Dr.GRPO 64.5, GRPO 63.8.
Other critics, each with its own number:
- GPT-4o, which sees the reference solution: configs/qwen3_8b_gpt4o.py, 68.3
- unsupervised, the policy's own verdict is the reward: about 66.05 (GRPO + 2.3), with
  `--config.critic.sees=nothing --config.reward_source=critic --config.critique.when=all`
- the policy sees no answer, the verifier rewards: `--config.critic.sees=nothing`; the paper has no number of it
"""

from configs import paper


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    c = paper.get_config()
    c.model.architecture = "qwen3_8b"
    c.critic.sees = "answer"
    c.prompts.template_arguments = '{"enable_thinking": False}'  # critiques of the paper have 683 tokens in the mean
    c.mesh.tensor = 4
    c.compute.remat = "mlp"  # fits all three, and recomputes less than "layer"
    c.engine.num_slots = 16  # what v5e:8x8 holds; larger chips hold more, see `plan`
    return c
