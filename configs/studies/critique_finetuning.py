"""Does learning to criticise teach to answer? Critique fine-tuning beside SFT on the same noisy answers.

    python launch/study.py --study=configs/studies/critique_finetuning.py --workdir=runs/critique_finetuning --only=tune
    python launch/study.py --study=configs/studies/critique_finetuning.py --workdir=runs/critique_finetuning

Task, model and warm start are those of configs/quickstart.py, whose answers are noisy: its facts are incomplete. Each
arm is the recipe below. All learn for equally many updates of equally many rows, from the same responses of the same
weights: SFT the responses (all, or the right ones), CFT (arXiv 2501.17703) critiques of them, one problem's CFT
(2506.03295) critiques of 64 solutions of one question. Critiques are kept where their verdict agrees with the grader.
Departure: their teacher is no stronger model, but the weights that all start from, two critiques a response, of the one
question seven. Measured on held-out questions: pass@1 without any critique, and what the model's own verdicts are
worth, on responses of the weights that all start from (others') and on its own.

Fixed before the runs: arms, seeds 0 to 2, sizes. The learning rate is one for all arms, of 1e-4, 3e-4 and 1e-3 that
with the highest verdict accuracy on others' answers, of seed 100 and the arm cft alone; it stands in LEARNING_RATE
then. Expected of a model this small: (1) verdict accuracy rises on others' answers, not on its own, as the paper of one
problem says; (2) direct pass@1 of cft is at least that of sft_noisy. No claim is made on the six benchmarks of the
papers.

About 45 core-minutes: 15 of these runs and four warm starts; on one seed cft took 2.0, a warm start 3.7.
"""

import pathlib
from collections.abc import Sequence

from cgrpo_jax.runs.recipes import Step

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "quickstart.py"
LEARNING_RATE = 3e-4
TUNED = (1e-4, 3e-4, 1e-3)

_KEPT = {  # what an arm learns: stages and which of the rows
    "sft_noisy": (("response",), "all"),
    "sft_right": (("response",), "right"),
    "cft": (("critique",), "right"),
    "one_problem": (("critique",), "right"),
}
_ALONE = {"collect.num_critiques": 0, "collect.num_refinements": 0}
_VERDICTS = {"critique.kind": "cot", "collect.which": "all", "collect.num_critiques": 1, "collect.num_refinements": 0}
_HELD_OUT = {"collect.questions": "held_out"}


def get_steps(arm: str = "cft", questions: int = 512, responses: int = 4, solutions: int = 64, updates: int = 200,
              critiques: int = 0):  # fmt: skip
    """Returns the steps of an arm.

    Args:
      arm: a name of `_KEPT`.
      questions, responses: that are answered, and answers to each.
      solutions: of the one question of `one_problem`.
      updates: of `finetune`.
      critiques: of a response; 0: 2, of the one question 7.
    """
    stages, which = _KEPT[arm]
    asked = {"collect.num_questions": questions, "collect.num_responses": responses}
    if arm == "one_problem":
        asked = {"collect.num_questions": 1, "collect.num_responses": solutions}
    steps = [Step("before", "evaluate"), Step("noisy", "collect", asked | _ALONE)]
    rows = "{noisy}"
    if stages == ("critique",):
        number = critiques or (7 if arm == "one_problem" else 2)
        steps.append(Step("critiques", "collect", _VERDICTS | {"collect.rows": rows, "collect.num_critiques": number}))
        rows = "{critiques}"
    learnt = {
        "finetune.loss": "nll",
        "finetune.rows": rows,
        "finetune.stages": stages,
        "finetune.which": which,
        "finetune.epochs": 0,
        "num_iterations": updates,
    }
    if stages == ("critique",):
        learnt["max_response_length"] = 48  # as long as critiques may be
    of_others = _VERDICTS | {"collect.rows": "{others}"}
    return [
        *steps,
        Step("learnt", "finetune", learnt),
        Step("after", "evaluate", weights="learnt"),
        Step("others", "collect", _HELD_OUT | {"collect.num_responses": responses} | _ALONE, stream=1),
        Step("verdicts_before", "collect", of_others),
        Step("verdicts_on_others", "collect", of_others, weights="learnt"),
        Step(
            "verdicts_on_own", "collect", _VERDICTS | _HELD_OUT | {"collect.num_responses": responses}, weights="learnt"
        ),
    ]


def _arm(name: str, label: str, sees: str, *, seeds: Sequence[int] = range(3), rate: float = LEARNING_RATE) -> dict:
    return {
        "name": name if rate == LEARNING_RATE and seeds == range(3) else f"tune_{name}_{rate:g}",
        "label": label,
        "sees": sees,
        "overrides": {"optimizer.learning_rate": rate, "finetune.rows_per_update": 16},
        "recipe": f"{pathlib.Path(__file__).resolve()}:arm={name}",
        "headline": seeds == range(3),
        "seeds": list(seeds),
    }


def get_study():
    """Returns the study: a base configuration, a setting, arms and their seeds, the columns of its table."""
    critic = "question and response; the verifier keeps critiques whose verdict is right"
    arms = [
        _arm("sft_noisy", "SFT on all responses", "no critic"),
        _arm("sft_right", "SFT on the right responses", "no critic"),
        _arm("cft", "CFT on the same responses", critic),
        _arm("one_problem", "CFT on one problem", critic),
    ]
    arms += [_arm("cft", f"tuning: CFT, rate {rate:g}", critic, seeds=[100], rate=rate) for rate in TUNED]
    settings = {"name": "chains", "label": "Chains of three steps, held-out facts", "overrides": {}}
    return {
        "config": str(CONFIG),
        "settings": [settings | {"headline_only": False}],
        "arms": arms,
        "entropy": [],
        "columns": [
            ("pass@1 before", ("before", "mean", "pass@1", "value"), 1, 3),
            ("pass@1", ("after", "mean", "pass@1", "value"), 1, 3),
            ("verdicts right before, of others'", ("verdicts_before", "verdict_accuracy", "value"), 1, 3),
            ("of others'", ("verdicts_on_others", "verdict_accuracy", "value"), 1, 3),
            ("of its own", ("verdicts_on_own", "verdict_accuracy", "value"), 1, 3),
            ("wrong ones called right, of others'", ("verdicts_on_others", "false_right", "value"), 1, 3),
            ("of its own", ("verdicts_on_own", "false_right", "value"), 1, 3),
        ],
        "measured": "pass@1 greedy, without a critique; of the model's verdicts on four responses to each, those that "
        "agree with the grader, on responses of the weights that all arms start from and on its own.",
    }
