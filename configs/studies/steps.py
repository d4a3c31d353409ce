"""Recipes of single arms of the studies: SFT on the solver's solutions, critics and refiners of weaker copies.

cgrpo recipe --recipe=configs/studies/steps.py:kind=sft --config=configs/quickstart.py --workdir=DIR
"""

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs.recipes import Step

KINDS = ("sft", "errors", "critic", "refiner", "critiques")


def get_steps(kind: str = "sft", updates: int = 0, critique: str = "execution", share: float = 0.0):
    """Returns the steps of an arm.

    Args:
      kind: `sft` learns the solver's solutions to the training questions; `errors` shows a share of the refinements
        what was said of another response; `critic` and `refiner` train one from the first weights by lessons that hold
        every fact (a refiner: the policy's own lessons), and then the policy with it; `critiques` trains nothing, and
        counts what refinements do after critiques.
      updates: lessons of the critic or refiner.
      critique: kind of critique of `critiques`.
      share: of the critiques of `errors`.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return {
        "sft": _sft,
        "errors": lambda: _errors(share),
        "critic": lambda: _with_a_critic(updates),
        "refiner": lambda: _with_a_refiner(updates),
        "critiques": lambda: _critiques(critique),
    }[kind]()


def _sft() -> list[Step]:
    # A run of one response a question, into whose every group the solver's solution is inserted, has written these
    # solutions as rows. Its weights are not used.
    solved = {"refine.kind": "solution", "refine.which": "all", "refine.max_pass": 1.0, "num_responses": 1}
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{solved}/rollouts",
        "finetune.stages": ("refinement",),
        "finetune.which": "right",
    }
    return [Step("solved", "train", solved), Step("learnt", "finetune", rows)]


def _errors(share: float) -> list[Step]:
    alone = {"collect.which": "failed", "collect.num_critiques": 1, "collect.num_refinements": 0}
    wrong = {"critique.corruption": "another", "critique.corrupted_share": share, "critique.others": "{others}"}
    return [Step("others", "collect", alone), Step("policy", "train", wrong)]


def _with_a_critic(updates: int) -> list[Step]:
    # All facts are in the critic's lessons: what it lacks is time, not facts.
    lessons = {
        "num_iterations": 0,
        "warm_start.num_updates": updates,
        "model.init": "",
        "data.num_held_out": 0,
        "data.hard_share": 0.0,
        "data.num_eval": 0,
    }
    trained = {"critique.kind": "cot", "critic.kind": "folder", "critic.folder": "{exported}"}
    return [
        Step("critic", "train", lessons),
        Step("exported", "convert", weights="critic"),
        Step("policy", "train", trained),
    ]


def _with_a_refiner(updates: int) -> list[Step]:
    lessons = {"num_iterations": 0, "warm_start.num_updates": updates, "model.init": "", "data.num_eval": 0}
    return [
        Step("refiner", "train", lessons),
        Step("exported", "convert", weights="refiner"),
        Step("policy", "train", {"refiner.folder": "{exported}"}),
    ]


def _critiques(critique: str) -> list[Step]:
    keys = {
        "critique.kind": critique,
        "collect.num_questions": 256,
        "collect.num_responses": 4,
        "collect.which": "failed",
    }
    return [Step("rows", "collect", keys)]
