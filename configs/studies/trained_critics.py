"""What is a trained critic worth? RCO, DPCO and none, and critics that learn in the loop beside the policy.

    python launch/study.py --study=configs/studies/trained_critics.py --workdir=runs/trained_critics --only=tune
    python launch/study.py --study=configs/studies/trained_critics.py --workdir=runs/trained_critics

Task, model and warm start are those of configs/quickstart.py. All critics start as copies of the warm start, which
writes critiques after a fashion. `rco` and `dpco` are trained offline by what their critiques achieved with that actor
(arXiv 2506.22157), `untrained` is the copy; then each is the frozen critic of a Critique-GRPO run. In `self_critique`
the policy criticises itself, untrained as a critic; in `joint_...` the critic is trained beside it (critic.train): the
policy's own weights, an adapter on them, or the copy's. All policies see equally many critiques and refinements.

Measured: the critic on held-out questions at its end (utility, fix and break rate, verdicts), with the warm start as
the actor, which offline critics were trained with, and with another one, a GRPO run of the same start; and what the
policy that learnt with it comes to.

Fixed before the runs: arms, seeds 0 to 2, sizes. Critics' learning rates are tuned on seed 100 alone, offline and in
the loop, each of 1e-4, 3e-4 and 1e-3 by the held-out utility; they stand in RATES then. Expected: utility of rco at
least dpco's, and both above untrained; whether the joint loop makes self-critique work, which taught nothing on this
task, is open: the question of this study.

About 180 core-minutes: 30 of these runs and four warm starts; on one seed joint_model took 6.1, a warm start 3.7.
"""

import pathlib

from cgrpo_jax.runs.recipes import Step

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "quickstart.py"
RATES = {"offline": 3e-4, "loop": 3e-4}
TUNED = (1e-4, 3e-4, 1e-3)
JOINT = {"joint_shared": "policy", "joint_adapter": "adapter", "joint_model": "model"}

# Of all policies, so that critics that learn have critiques to compare, of right responses too.
_SAMPLING = {
    "critique.kind": "cot",
    "critique.when": "all",
    "critique.num_per_response": 2,
    "refine.which": "all",
    "refine.max_pass": 1.0,
}


def get_steps(arm: str = "rco", questions: int = 256, responses: int = 4, critiques: int = 4, refinements: int = 2,
              updates: int = 200, iterations: int = 40, rate: float = 0.0, policy: bool = True):  # fmt: skip
    """Returns the steps of an arm.

    Args:
      arm: rco, dpco, untrained, self_critique, or a name of `JOINT`.
      questions, responses, critiques, refinements: that an offline critic is trained on, and measured by.
      updates: of an offline critic.
      iterations: of Critique-GRPO, and half as many of the other actor's GRPO.
      rate: of the critic, in the place of `RATES`.
      policy: whether a policy is trained after an offline critic.
    """
    asked = {
        "critique.kind": "cot",
        "collect.which": "all",
        "collect.num_responses": responses,
        "collect.num_critiques": critiques,
        "collect.num_refinements": refinements,
    }
    held_out = asked | {"collect.questions": "held_out"}
    other = Step("other_actor", "train", {"refine.kind": "none", "num_iterations": max(iterations // 2, 1)})
    copy = [Step("copy", "train", {"num_iterations": 0}), Step("untrained", "convert", weights="copy")]
    trains = _SAMPLING | {"num_iterations": iterations}
    if arm in JOINT or arm == "self_critique":
        keys: dict = {"critic.kind": "policy"}
        if arm in JOINT:
            keys |= {"critic.train": True, "critic.training.weights": JOINT[arm]}
            keys |= {"critic.training.learning_rate": rate or RATES["loop"]}
        if arm == "joint_model":
            keys |= {"critic.kind": "folder", "critic.folder": "{untrained}"}
        frozen = {"critic.kind": "folder", "critic.folder": "{exported}"}
        return [
            *copy,
            other,
            Step("policy", "train", trains | keys),
            Step("exported", "convert", weights="policy", of="critic" if arm in JOINT else "policy"),
            Step("after", "evaluate", weights="policy"),
            Step("with_its_actor", "collect", held_out | frozen),
            Step("with_another", "collect", held_out | frozen, weights="other_actor"),
        ]
    steps, folder = [*copy, other], "{untrained}"
    if arm != "untrained":
        loss = {"rco": "rco", "dpco": "dpo"}[arm]
        rows = {"finetune.loss": loss, "finetune.rows": "{samples}", "finetune.epochs": 0, "num_iterations": updates}
        rows |= {"optimizer.learning_rate": rate or RATES["offline"]}
        rows |= {"max_response_length": 48} | ({"finetune.stages": ("critique",)} if loss == "dpo" else {})
        steps += [
            Step("samples", "collect", asked | {"collect.num_questions": questions}),
            Step("critic", "finetune", rows),
            Step("exported", "convert", weights="critic"),
        ]
        folder = "{exported}"
    frozen = {"critic.kind": "folder", "critic.folder": folder}
    steps += [
        Step("with_its_actor", "collect", held_out | frozen),
        Step("with_another", "collect", held_out | frozen, weights="other_actor"),
    ]
    if policy:
        steps += [Step("policy", "train", trains | frozen), Step("after", "evaluate", weights="policy")]
    return steps


def _arm(name: str, label: str, *, rate: float = 0.0) -> dict:
    tunes = f",rate={rate},policy=False" if rate else ""
    return {
        "name": f"tune_{name}_{rate:g}" if rate else name,
        "label": f"tuning: {label}, rate {rate:g}" if rate else label,
        "sees": "question and response",
        "overrides": {"finetune.rows_per_update": 32},
        "recipe": f"{pathlib.Path(__file__).resolve()}:arm={name}{tunes}",
        "headline": not rate,
        "seeds": [100] if rate else [0, 1, 2],
    }


def get_study():
    """Returns the study: a base configuration, a setting, arms and their seeds, the columns of its table."""
    labels = {
        "untrained": "frozen, untrained",
        "rco": "frozen, trained by RCO",
        "dpco": "frozen, trained by DPCO",
        "self_critique": "self-critique, untrained",
        "joint_shared": "joint loop, the policy's weights",
        "joint_adapter": "joint loop, an adapter on them",
        "joint_model": "joint loop, weights of its own",
    }
    arms = [_arm(name, label) for name, label in labels.items()]
    arms += [_arm(name, labels[name], rate=rate) for name in ("rco", "dpco", "joint_model") for rate in TUNED]
    measured = {"utility": "utility", "fix rate": "fix_rate", "break rate": "break_rate"}
    with_its = [(name, ("with_its_actor", key, "value"), 1, 3) for name, key in measured.items()]
    with_other = [(f"{name}, another actor", ("with_another", key, "value"), 1, 3) for name, key in measured.items()]
    setting = {"name": "chains", "label": "Chains of three steps, held-out facts", "overrides": {}}
    return {
        "config": str(CONFIG),
        "settings": [setting | {"headline_only": False}],
        "arms": arms,
        "entropy": [],
        "columns": [
            *with_its,
            ("verdicts right", ("with_its_actor", "verdict_accuracy", "value"), 1, 3),
            *with_other,
            ("pass@1 of the policy", ("after", "mean", "pass@1", "value"), 1, 3),
            ("unsolved then solved", ("policy", "unsolved_before_solved_after"), 1, 3),
        ],
        "measured": "utility of a critique: the mean over its refinements, 1 fixed, 0.5 as before, 0 broken; of wrong "
        "responses those fixed, of right ones those broken; verdicts that agree with the grader; pass@1 greedy; of the "
        "questions that no sample solved before training, the share that one solves after it.",
    }
