"""Critique-GRPO on Qwen2.5-7B, each critique the verdict and the answer (arXiv 2506.03106), n = 7 + 1.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:8x8 --zone=ZONE --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen2_5_7b.py --workdir=gs://BUCKET/qwen2_5_7b \\
        --config.model.folder=gs://BUCKET/Qwen2.5-7B --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

Topology: v6e:8x8, 64 chips on 16 hosts; tensor groups of 4, one of the 4 key/value heads each.
Memory, by `python -m cgrpo_jax.plan --config=configs/qwen2_5_7b.py --topology=v6e:8x8`:
12.1 of 31.3 GiB a chip at most, in prefill; 5.1 in the update.
To reach: mean pass@1 of the paper's eight benchmarks 45.3, of its best checkpoint; Dr.GRPO 42.7, GRPO 41.2.
Other critiques, each with its own number:
- GPT-4o, which sees the reference solution: configs/qwen2_5_7b_gpt4o.py, 47.1
- the verdict alone: `--config.critique.kind=indicative`, 44.6
- this model's own: `--config.critique.kind=cot --config.critic.sees=answer`; the paper has no number of it
"""

from configs import paper


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    c = paper.get_config()
    c.model.architecture = "qwen2_5_7b"
    c.critique.kind = "indicative_gt"
    c.mesh.tensor = 4
    c.engine.num_slots = 32
    return c
