"""One-problem CFT (arXiv 2506.03295): many solutions of one question, criticised by many critics, are all the data.

    L = - 1/T sum_t log pi(c_t | [q; y], c_<t)   over c by several critics, of 100 solutions y of one q

    cgrpo recipe --recipe=configs/recipes/one_problem_cft.py:critics=FOLDER1,critics=FOLDER2 --config=MY_CONFIG.py \\
        --workdir=DIR

The question is the first one of the data: give one of middling difficulty. kept: critiques whose verdict is right,
600 drawn at random; context: the critique's prompt; target: c; weight: 1. Departures: by default the configuration's
model writes all solutions; the paper's come from ten models (`solutions=ROLLOUTS`, rows collected before). Its critics
are seven, here `critics=FOLDER` each; without one the configuration's (`critic.*`) writes several of each.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 100, num_critiques: int = 7, max_rows: int = 600, solutions: str = "",
              critics: tuple = ()):  # fmt: skip
    """Returns the steps.

    Args:
      num_responses: solutions of the question.
      num_critiques: of each by the configuration's critic; where critics are given, one by each.
      max_rows: critiques that are learnt; 0: all.
      solutions: folder of rollouts with the solutions; empty: they are written.
      critics: Hugging Face folders.
    """
    one = {"collect.num_questions": 1, "collect.num_refinements": 0}
    written = {"collect.num_responses": num_responses, "collect.num_critiques": 0}
    steps = [Step("before", "evaluate")]
    if not solutions:
        steps.append(Step("solutions", "collect", one | written))
    asked = one | {"collect.rows": solutions or "{solutions}", "collect.which": "all", "critique.kind": "cot"}
    given = [{"critic.kind": "folder", "critic.folder": folder} for folder in critics] or [{}]
    names = [f"critiques_{number}" for number in range(1, len(given) + 1)]
    each = {"collect.num_critiques": 1 if critics else num_critiques}
    steps += [Step(name, "collect", asked | each | critic) for name, critic in zip(names, given, strict=True)]
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": ",".join(f"{{{name}}}" for name in names),
        "finetune.stages": ("critique",),
        "finetune.which": "right",
        "finetune.max_per_question": max_rows,
    }
    return [*steps, Step("learnt", "finetune", rows), Step("after", "evaluate", weights="learnt")]
