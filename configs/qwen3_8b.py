"""Critique-GRPO on Qwen3-8B: the paper's run (arXiv 2506.03106), n = 7 + 1, 128 questions an iteration.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:8x8 --zone=ZONE --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_8b.py --workdir=SHARED/qwen3_8b \\
        --config.model.folder=SHARED/Qwen3-8B --config.data.train=SHARED/train.jsonl

Topology: v6e:8x8, 64 chips on 16 hosts; tensor groups of 4, two of the 8 key/value heads each.
Memory: `python -m cgrpo_jax.plan --config=configs/qwen3_8b.py --topology=v6e:8x8` says whether it fits.
To reach: mean pass@1 of the paper's eight benchmarks, CoT critiques 68.3; Dr.GRPO 64.5, GRPO 63.8.
"""

from configs import paper


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    c = paper.get_config()
    c.model.architecture = "qwen3_8b"
    c.mesh.tensor = 4
    c.max_rows = 8  # what v5e:8x8 holds; larger chips hold more, see above
    return c
