"""What the paper's runs have in common (arXiv 2506.03106): Critique-GRPO with 7 responses and 1 kept refinement.

Not a run by itself: the files that start from it add the model, the mesh and the critic, and say which result of the
paper is theirs. Questions are given on the command line, as JSON lines with the columns `question` and `answer`:
`data.train`, and `data.eval` for the evaluations that find the best checkpoint, which `convert` and `evaluate` take
with `--step=best`.

What else the paper compares is the same run with other values:
- Dr.GRPO: `--config.refine.kind=none --config.num_responses=8`
- GRPO: these and `--config.objective.scale_by_std=True --config.objective.aggregate=sequence_mean
  --config.objective.kl_coef=0.001`
- cheaper critiques: `--config.critique.kind=indicative`, or `indicative_gt`
- a critic that sees less or more: `--config.critic.sees=nothing`, `answer` or `solution`
- unsupervised, the critic's verdict is the reward: `--config.critic.sees=nothing --config.critique.kind=cot
  --config.reward_source=critic --config.critique.when=all`

Where these runs depart from the paper: configs/README.md.
"""

from configs import base


def get_config():
    """Returns the paper's hyperparameters."""
    c = base.get_config()

    c.data.kind = "jsonl"
    c.grader.kind = "math"
    c.prompts.question = "{question}\nReason step by step, and put your final answer within \\boxed{}."

    c.num_iterations = 400
    c.eval.every = 50
    c.eval.keep_best = "pass@1"
    c.eval.k = (1,)  # greedy; samples, for larger k, are for `cgrpo evaluate`
    c.checkpoints.every = 25
    c.questions_per_iteration = 128
    c.optimizer.updates_per_batch = 2  # minibatches of 64 questions
    c.num_responses = 7  # [n]
    c.refine.num_kept = 1  # [k]
    c.critique.kind = "cot"

    c.max_prompt_length = 2048
    c.max_response_length = 6144
    c.critic.max_length = 1024
    c.critic.max_prompt_length = 9216  # a question and a response, with 1,024 tokens to spare
    c.refine.max_prompt_length = 10240  # and a critique

    c.optimizer.learning_rate = 1e-6
    c.objective.gamma = 0.1
    c.objective.old_logp = "trainer"  # in bfloat16 the sampler's own differ enough to be clipped
    return c


def with_gpt4o(c):
    """Lets GPT-4o write the critiques, as in the paper's main results: it sees the data's solution.

    The data need a column `solution`, and the environment the key.
    """
    c.critique.kind = "cot"
    c.critic.kind = "endpoint"
    c.critic.endpoint.url = "https://api.openai.com/v1"
    c.critic.endpoint.model = "gpt-4o"
    c.critic.endpoint.key_variable = "OPENAI_API_KEY"
    c.critic.sees = "solution"
    c.critic.max_prompt_length = 15360  # a question, a response and a solution as long, with 1,024 tokens to spare
    c.data.solution_key = "solution"
    return c
