"""Arms, settings and columns that the studies of the list (`order.py`) share; each study file picks from them.

    from configs.studies import arms


    def get_study():
        return arms.study(
            "What is the critique's value worth?",
            paper="Table 2: critiques beat the reward alone",
            arms=[arms.DR_GRPO, arms.EXECUTION | {"against": {"dr_grpo": arms.ABOVE}}],
        )

Every arm is the quickstart of its task as it is, but for its overrides: learning rate, lengths, numbers of questions
and iterations are equal in all, and none was tuned for an arm here. What a method's file says of gamma, critic, teacher
and data is left out: these are the task's own. `minutes` of a setting are of this machine as a whole, two cores: of one
training run and of its warm start, both measured. An arm that takes longer has `times`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from configs import quickstart
from configs.methods import dr_grpo, luffy, r1_grpo, rltf_sd, sdpo

CONFIGS = pathlib.Path(__file__).resolve().parents[1]
RECIPES = CONFIGS / "recipes"
STEPS = CONFIGS / "studies" / "steps.py"
BASE = quickstart.get_config()

# What the paper says of an arm beside another: higher, lower, or nothing.
ABOVE, BELOW, NOTHING = "above", "below", ""

# What a method's file sets, and a task has of its own.
_OF_THE_TASK = ("objective.gamma", "critique.kind", "critic.", "data.", "prompts.")

CHAINS = {
    "name": "chains",
    "label": "Chains of three steps; the warm start never shows some products, and most questions need one",
    "overrides": {},
    "headline_only": False,
    "minutes": {"run": 1.0, "warm_start": 1.3},
}
CODE = {
    "name": "code",
    "label": "Programs of two operations; the warm start never shows what some are called",
    "config": str(CONFIGS / "code_quickstart.py"),
    "overrides": {},
    "headline_only": True,
    "minutes": {"run": 4.0, "warm_start": 2.0},
}

PASS_1 = ("pass@1", ("eval_after", "pass@1"), 1, 3)
PASS_8 = ("pass@8", ("eval_after", "pass@8"), 1, 3)
SOLVED = ("unsolved then solved", ("unsolved_before_solved_after",), 1, 3)
TOKENS = ("tokens generated (k)", ("num_tokens",), 1000, 0)
COLUMNS = (PASS_1, PASS_8, SOLVED, TOKENS)
MEASURED = (
    "pass@1 greedy, pass@8 sampled, on held-out questions; of those that no sample solved before training, the share "
    "that one solves after it; tokens that training sampled."
)


def metric(label: str, key: str, when: str, digits: int = 3) -> tuple[str, Sequence[str], float, int]:
    """Returns a column of a metric: its mean over the `first`, the `last` tenth of the iterations, or `all`."""
    return (label, ("metrics", key, when), 1, digits)


def values_of(method: Any, *left_out: str, **more: Any) -> dict[str, Any]:
    """Returns the values of a file of configs/methods without those that are the task's own.

    Args:
      method: the module.
      left_out: further keys, or beginnings of keys, that are left out.
      more: values, dots of their keys as two underscores: `critique__kind="execution"`.
    """
    out = (*_OF_THE_TASK, *left_out)
    kept = {key: value for key, value in method.VALUES.items() if not key.startswith(out)}
    return kept | {key.replace("__", "."): value for key, value in more.items()}


def arm(name: str, label: str, sees: str, overrides: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns an arm; `more` are `recipe`, `result` (its step whose numbers count), `against`, `times`, `headline`."""
    return {"name": name, "label": label, "sees": sees, "overrides": dict(overrides), "headline": True, **more}


def study(question: str, *, paper: str, arms: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]] = (
          CHAINS,), seeds: int = 3, columns: Sequence[Any] = COLUMNS, **more: Any) -> dict[str, Any]:  # fmt: skip
    """Returns a study of the list.

    Args:
      question: that it asks.
      paper: what the paper says of it, with its numbers.
      arms: in the order of the table.
      settings: tasks, or versions of one.
      seeds: from 0.
      columns: of the table; the first one decides, unless `decides` names another.
      more: `decides`, `measured`, `entropy`, `warm_start`.
    """
    return {
        "config": str(CONFIGS / "quickstart.py"),
        "question": question,
        "paper": paper,
        "settings": list(settings),
        "arms": [dict(one) | {"seeds": list(range(seeds))} for one in arms],
        "columns": list(columns),
        "decides": columns[0][0],
        "measured": MEASURED,
        "entropy": [],
        **more,
    }


# --- rewards alone ------------------------------------------------------------------------------------------------

NO_CRITIC = "no critic"
STEPS_AND_VALUE = "what was run: the first wrong step, or failing test, with the value expected"

R1_GRPO = arm("r1_grpo", "R1-GRPO, n = 8", NO_CRITIC, values_of(r1_grpo))
DR_GRPO = arm("dr_grpo", "Dr.GRPO, n = 8", NO_CRITIC, values_of(dr_grpo))


def dr_grpo_of(responses: int) -> dict[str, Any]:
    """Returns Dr.GRPO with another number of responses."""
    overrides = values_of(dr_grpo, num_responses=responses)
    return arm(
        f"dr_grpo_n{responses}", f"Dr.GRPO, n = {responses}", NO_CRITIC, overrides, times=0.3 + 0.7 * responses / 8
    )


# --- Critique-GRPO, by critique: what the quickstart does, the kind of critique apart -------------------------------

EXECUTION = arm("execution", "Critique-GRPO, execution", STEPS_AND_VALUE, {"critique.kind": "execution"})
INDICATIVE = arm(
    "indicative", "Critique-GRPO, indicative", "the verifier's verdict", {"critique.kind": "indicative"}, times=1.2
)
INDICATIVE_GT = arm(
    "indicative_gt",
    "Critique-GRPO, indicative_gt",
    "the verifier's verdict and the answer",
    {"critique.kind": "indicative_gt"},
)
COT = arm(
    "cot",
    "Critique-GRPO, cot by itself",
    "question and response; the verifier decides whether it writes again",
    {"critique.kind": "cot"},
    times=1.8,
)
COT_ANSWER = arm(
    "cot_answer",
    "Critique-GRPO, cot by itself with the answer",
    "question, response and answer; the verifier decides whether it writes again",
    {"critique.kind": "cot", "critic.sees": "answer"},
    times=1.8,
)
NO_CRITIQUE = arm(
    "no_critique",
    "refinement without a critique",
    "no critic; the policy rereads its failed response",
    {"critique.kind": "none"},
    times=1.2,
)
SOLUTION = arm(
    "solution",
    "a correct solution inserted",
    "no critic; the task's solver answers questions that all responses fail",
    {"refine.kind": "solution"},
)

# --- learning rows: recipes, of 512 questions with 8 responses each --------------------------------------------------

_ROWS = {"collect.num_questions": 512}


def _recipe(name: str, label: str, sees: str, times: float, **overrides: Any) -> dict[str, Any]:
    more = {key.replace("__", "."): value for key, value in overrides.items()}
    return arm(name, label, sees, _ROWS | more, recipe=str(RECIPES / f"{name}.py"), result="learnt", times=times)


SFT = arm(
    "sft",
    "SFT on the solver's solutions",
    "no critic; the task's solver",
    {},
    recipe=f"{STEPS}:kind=sft",
    result="learnt",
    times=1.2,
)
RAFT = _recipe("raft", "RAFT", NO_CRITIC, 0.6)
REFINEMENT_FT = _recipe("refinement_ft", "Refinement FT, execution", STEPS_AND_VALUE, 1.2)
CITL_FT = _recipe("citl_ft", "CITL-FT, execution", STEPS_AND_VALUE, 1.4)
# Critiques may be longer than responses.
CRITIQUE_FT = _recipe(
    "critique_ft",
    "Critique FT, cot by itself",
    "question and response; critiques whose verdict is right are learnt",
    1.2,
    max_response_length=BASE.critic.max_length,
)

# --- neighbours ---------------------------------------------------------------------------------------------------

LUFFY = arm("luffy", "LUFFY", "no critic; the task's solver answers every question", values_of(luffy))
RLTF_SD = arm("rltf_sd", "RLTF-SD, execution", STEPS_AND_VALUE, values_of(rltf_sd), times=1.6)
SDPO = arm("sdpo", "SDPO, execution", STEPS_AND_VALUE, values_of(sdpo, prompts__teacher=""), times=1.3)
