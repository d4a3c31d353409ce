"""Critique-GRPO on Qwen3-32B that critiques itself and sees the answer (arXiv 2506.03106), n = 7 + 1.

    python launch/tpu_pod.py --name=cgrpo --topology=v5p:4x4x4 --zone=ZONE --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_32b.py --workdir=gs://BUCKET/qwen3_32b \\
        --config.model.folder=gs://BUCKET/Qwen3-32B --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

Topology: v5p:4x4x4, 64 chips on 16 hosts; tensor groups of 8, one of the 8 key/value heads each: two hosts a group.
Memory, by `python -m cgrpo_jax.plan --config=configs/qwen3_32b.py --topology=v5p:4x4x4`:
46.0 of 95.7 GiB a chip at most, in prefill; 21.0 in the update.
To reach: a gain of 4.0 on GRPO over eight benchmarks, as the paper says. The mean itself is not at
hand, nor who criticised; `paper.with_gpt4o` gives it the critic of the paper's main results.
"""

from configs import paper


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    c = paper.get_config()
    c.model.architecture = "qwen3_32b"
    c.critic.sees = "answer"
    c.prompts.template_arguments = '{"enable_thinking": False}'  # critiques of the paper have 683 tokens in the mean
    c.mesh.tensor = 8
    return c
