"""Critique-GRPO on Qwen2.5-7B, critiqued by GPT-4o that sees the reference solution: the paper's main result.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:8x8 --zone=ZONE --project=PROJECT --spot \\
        --env=OPENAI_API_KEY -- \\
        python -m cgrpo_jax.train --config=configs/qwen2_5_7b_gpt4o.py --workdir=gs://BUCKET/qwen2_5_7b_gpt4o \\
        --config.model.folder=gs://BUCKET/Qwen2.5-7B --config.data.train=gs://BUCKET/train.jsonl \\
        --config.data.eval=gs://BUCKET/test.jsonl

The data have the columns `question`, `answer` and `solution`; the endpoint's key is in OPENAI_API_KEY. Topology and
memory are those of qwen2_5_7b.py: what the policy writes is no longer here.
To reach: mean pass@1 of the paper's eight benchmarks 47.1, of its best checkpoint; Dr.GRPO 42.7, GRPO 41.2. With other
critics the paper has 46.8 (Llama-3.1-405B) and 48.0 (DeepCritic-7B).
"""

from configs import paper, qwen2_5_7b


def get_config():
    """Returns the configuration; the model's folder and the questions are given on the command line."""
    return paper.with_gpt4o(qwen2_5_7b.get_config())
