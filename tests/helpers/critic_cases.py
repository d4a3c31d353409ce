"""How an iteration has trained a critic: four critiques of a wrong response and of a right one, two updates."""

from rollout_cases import rollout

from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.runs.iteration import CriticUpdates
from cgrpo_jax.training.critic_rows import CriticRows, CriticTraining, Judged, advantages
from cgrpo_jax.training.critic_rows import _row as row_of
from cgrpo_jax.training.learner import Updates

RCO = CriticTraining("rco", "policy", beta=0.5, verdict_weight=0.0)
SKIPPED = {"grad_norm": float("inf"), "rows_trained": 4, "policy_loss": 0.0, "rco_loss": 9.0, "rco/log_ratio_sum": 0.0}
FIRST = {"grad_norm": 3.0, "rows_trained": 4, "policy_loss": 0.0, "rco_loss": 2.0, "rco/log_ratio_sum": 0.0}
SECOND = {"grad_norm": 1.0, "rows_trained": 4, "policy_loss": 0.0, "rco_loss": 1.0, "rco/log_ratio_sum": -6.0}


def judged():
    """Returns critiques of a wrong response, two and none of whose refinements pass, and of a right one."""
    found = []
    for number, (reward, said) in enumerate([(0.0, [(False, 2), (True, 0)]), (1.0, [(True, 1), (None, 0)])]):
        response = rollout(RowIndex(0, number), reward=reward)
        for place, (verdict, passed) in enumerate(said):
            at = RowIndex(0, number, place, stage=Stage.CRITIQUE)
            critique = rollout(at, prompt=(8, number, 2), parent=response, verdict=verdict)
            found.append(Judged(critique, reward == 1.0, (True,) * passed + (False,) * (2 - passed)))
    return found


def critic_updates(*stats, training=RCO):
    """Returns them with what updates counted."""
    all_of_them = judged()
    groups = [all_of_them[:2], all_of_them[2:]]
    weighed = advantages([[one.utility for one in group] for group in groups], training)
    rows = [
        [row_of(one, a, training) for one, a in zip(*both, strict=True)] for both in zip(groups, weighed, strict=True)
    ]
    logps = [[row.old_logp - 1 for row in group] for group in rows]
    trained = [[True, True], [False, False]]
    return CriticUpdates(CriticRows(all_of_them, groups, rows), Updates(list(stats), trained, logps), 1e-3)
