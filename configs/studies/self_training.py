"""Does a critic in the loop keep self-training from narrowing? Three rounds, 3 or 10 responses, with and without.

    python launch/study.py --study=configs/studies/self_training.py --workdir=runs/self_training --only=tune
    python launch/study.py --study=configs/studies/self_training.py --workdir=runs/self_training

Task, model, warm start and critic (the task's checker) are those of configs/quickstart.py; each arm is
configs/recipes/self_training.py (AutoMathCritique, arXiv 2411.16579): rounds of sampling and SFT from the first
weights, of wrong responses the right refinements too, one row kept a question. Measured: held-out pass@1, pass@8,
pass@64; of the held-out questions that no sample solved at first (the hard bin) the share that one solves after the
last round; of the kept rows those of hard questions, in the first and the last round (tail narrowing); distinct answers
to a question.

Fixed before the runs: arms, seeds 0 to 2, three rounds, sizes. The learning rate is one for all arms, of 1e-4, 3e-4 and
1e-3 that with the highest pass@1 after the last round, of seed 100 and the arm without a critic and N = 3; it stands in
LEARNING_RATE then. Expected, as the paper claims: with a critic the hard bin is larger at either N, the more so at 10;
the hard share of the kept rows is constant or rises, and falls without one.

About 155 core-minutes, by the texts that an arm writes (100,000 of N = 3, two thirds of them in evaluations) beside
those of the other two studies, of which an arm was measured; a warm start takes 3.7.
"""

import pathlib
from collections.abc import Sequence

CONFIGS = pathlib.Path(__file__).resolve().parents[1]
LEARNING_RATE = 3e-4
TUNED = (1e-4, 3e-4, 1e-3)
ROUNDS = 3


def _arm(responses: int, with_critic: bool, *, seeds: Sequence[int] = range(3), rate: float = LEARNING_RATE) -> dict:
    name = f"{'critic' if with_critic else 'plain'}_{responses}"
    tunes = seeds != range(3)
    said = f"N = {responses}, {'a critic in the loop' if with_critic else 'rejection sampling alone'}"
    steps = f"rounds={ROUNDS},num_responses={responses},with_critic={with_critic}"
    return {
        "name": f"tune_{name}_{rate:g}" if tunes else name,
        "label": f"tuning: {said}, rate {rate:g}" if tunes else said,
        "sees": "the steps recomputed; names the first wrong one and its value" if with_critic else "no critic",
        "overrides": {"optimizer.learning_rate": rate},
        "recipe": f"{CONFIGS / 'recipes' / 'self_training.py'}:{steps}",
        "headline": not tunes,
        "seeds": list(seeds),
    }


def get_study():
    """Returns the study: a base configuration, a setting, arms and their seeds, the columns of its table."""
    arms = [_arm(responses, with_critic) for responses in (3, 10) for with_critic in (False, True)]
    arms += [_arm(3, False, seeds=[100], rate=rate) for rate in TUNED]
    last = f"after_{ROUNDS}", "mean"
    setting = {
        "name": "chains",
        "label": "Chains of three steps, held-out facts",
        "overrides": {
            "finetune.rows_per_update": 32,
            "finetune.epochs": 3,
            "collect.num_questions": 1024,
            "eval.k": (1, 8, 64),
            "eval.num_samples": 64,
        },
        "headline_only": False,
    }
    return {
        "config": str(CONFIGS / "quickstart.py"),
        "settings": [setting],
        "arms": arms,
        "entropy": [],
        "columns": [
            ("pass@1 before", ("before", "mean", "pass@1", "value"), 1, 3),
            ("pass@1", (*last, "pass@1", "value"), 1, 3),
            ("pass@8", (*last, "pass@8", "value"), 1, 3),
            ("pass@64", (*last, "pass@64", "value"), 1, 3),
            ("hard bin solved", (f"learnt_{ROUNDS}", "unsolved_before_solved_after"), 1, 3),
            ("hard share of kept rows, round 1", ("learnt_1", "kept", "hard share"), 1, 3),
            (f"round {ROUNDS}", (f"learnt_{ROUNDS}", "kept", "hard share"), 1, 3),
            ("distinct answers, round 1", ("samples_1", "distinct_answers", "value"), 1, 3),
            (f"round {ROUNDS}", (f"samples_{ROUNDS}", "distinct_answers", "value"), 1, 3),
        ],
        "measured": "pass@1 greedy, pass@8 and pass@64 of 64 samples; the hard bin: held-out questions that no sample "
        "solved before training; a hard question is one whose pass rate in the first round is at most 1/4.",
    }
