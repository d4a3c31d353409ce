"""Critique-GRPO on Llama-3.2-3B-Instruct that critiques itself and sees the answer (arXiv 2506.03106), n = 7 + 1.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:4x4 --zone=ZONE --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/llama3_2_3b.py --workdir=gs://BUCKET/llama3_2_3b \\
        --config.model.folder=gs://BUCKET/Llama-3.2-3B-Instruct --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

Topology: v6e:4x4, 16 chips on 4 hosts; tensor groups of 4, two of the 8 key/value heads each.
Memory, by `python -m cgrpo_jax.plan --config=configs/llama3_2_3b.py --topology=v6e:4x4`:
18.2 of 31.3 GiB a chip at most, in prefill; 8.8 in the update.
To reach: a gain of 7.3 on the model itself and 5.1 on GRPO over eight benchmarks, as the paper says. The mean itself is
not at hand, nor who criticised; `paper.with_gpt4o` gives it the critic of the paper's main results.
"""

from configs import paper


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    c = paper.get_config()
    c.model.architecture = "llama3_2_3b"
    c.critic.sees = "answer"
    c.mesh.tensor = 4
    c.engine.num_slots = 32
    return c
