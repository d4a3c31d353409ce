"""Critique-GRPO on Qwen3-8B, critiqued by GPT-4o that sees the reference solution: the paper's main result.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:4x4 --zone=ZONE --project=PROJECT --spot \\
        --env=OPENAI_API_KEY -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_8b_gpt4o.py --workdir=gs://BUCKET/qwen3_8b_gpt4o \\
        --config.model.folder=gs://BUCKET/Qwen3-8B --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

The data have the columns `question`, `answer` and `solution`; the endpoint's key is in OPENAI_API_KEY. Topology and
memory are those of qwen3_8b.py: what the policy writes is no longer here.
To reach: mean pass@1 of the paper's eight benchmarks 68.3, of its best checkpoint; Dr.GRPO 64.5, GRPO 63.8.
"""

from configs import paper, qwen3_8b


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    return paper.with_gpt4o(qwen3_8b.get_config())
