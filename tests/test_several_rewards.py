"""Several rewards of a response: asked for by name, null where one is not meant for it."""

import pytest
from scripted_rollouts import PROBLEMS, response

from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.rewards.answers import Grade
from cgrpo_jax.rollout import also_reward
from cgrpo_jax.runs import metrics


class ScriptedGrader:
    """Grades by the kind that is asked for; a kind ending in `null` declines the second response."""

    kind = "math"
    judge = None

    def __init__(self):
        self.asked = []

    def is_remote(self, kind=""):
        return False

    def takes_groups(self, kind=""):
        return True

    def send(self):
        pass

    def submit(self, text, answer, *, kind, **_):
        self.asked.append((kind, text))
        declines = kind.endswith("null") and len(self.asked) % 2 == 0
        grade = Grade(0.0, None, "the reward function gave None", failed=True) if declines else Grade(0.25, None, "")
        return type("Pending", (), {"result": lambda _: grade})()


def rewarded(rows, kinds):
    grader = ScriptedGrader()
    (found,) = Orchestrator(grader).run([also_reward(rows, PROBLEMS[0], kinds)])
    return found, grader


def test_each_kind_is_asked_about_every_response():
    rows = [response(0, 0), response(0, 1)]
    found, grader = rewarded(rows, ["style.py:short", "m:null"])
    assert [kind for kind, _ in grader.asked] == ["style.py:short"] * 2 + ["m:null"] * 2
    assert [text for _, text in grader.asked] == [one.text for one in rows] * 2
    assert [one.rewards for one in found] == [
        (("style.py:short", 0.25), ("m:null", 0.25)),
        (("style.py:short", 0.25), ("m:null", None)),
    ]
    assert [one.reward for one in found] == [one.reward for one in rows]  # the gate's, which none of these is


def test_without_other_rewards_nothing_is_asked():
    rows = [response(0, 0)]
    found, grader = rewarded(rows, ())
    assert found is rows and not grader.asked


def test_metrics_of_each_reward_have_trls_names():
    values = (("a.py:short", 0.5), ("b:long", None)), (("a.py:short", 1.0), ("b:long", 3.0))
    rows = [response(0, n, float(n)).replace(rewards=one) for n, one in enumerate(values)]
    rows.append(response(0, 2).replace(ungraded=True, rewards=(("a.py:short", 0.0), ("b:long", 1.0))))
    assert metrics.reward_metrics([rows], gate="math") == {
        "rewards/math/mean": 0.5,
        "rewards/math/std": pytest.approx(0.7071, rel=1e-4),
        "rewards/short/mean": 0.5,
        "rewards/short/std": pytest.approx(0.5),
        "rewards/long/mean": 2.0,
        "rewards/long/std": pytest.approx(1.4142, rel=1e-4),
    }
    assert metrics.reward_metrics([[response(0, 0)]], gate="math") == {}
