"""Distillation from feedback in runs: beside the policy's loss and alone, resumed, and in its rollouts."""

import numpy as np
import tiny_run
from tiny_run import metrics, rollouts, run

from cgrpo_jax.records import LossKind, Stage
from cgrpo_jax.training.checkpoint import restore_params

ALONE = {
    "data.num_eval": 0,
    "critique.kind": "execution",
    "critique.when": "all",
    "refine.kind": "none",
    "distil.kind": "alone",
    "distil.top_tokens": 8,
}


def test_alone_it_trains_failed_responses_and_needs_no_refinement(tmp_path, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    folder = run(tmp_path, ALONE)
    assert not seen.of(Stage.REFINEMENT)
    for row, given, rows in zip(metrics(folder), seen.updates, rollouts(folder), strict=True):
        taught = [one for one in given if one.teacher_logp is not None]
        assert {one.loss for one in given} == {LossKind.DISTIL}
        failed = [one.rollout for one in rows if one.rollout.stage == Stage.RESPONSE and one.rollout.reward < 1]
        assert len(taught) == len(failed) == row["rows_trained"] > 0
        assert row["tokens_trained"] == row["distil/tokens"] == sum(len(one.target_ids) for one in taught)
        assert row["distil/divergence"] > 1e-3 and 0 < row["distil/rest"] < 0.5 and row["grad_norm"] > 0
        assert row["loss"] == 0 and row["distil/loss"] > 0
        for one in rows:
            if one.rollout.stage == Stage.RESPONSE:
                assert one.dropped == ("" if one.rollout.reward < 1 else "no_feedback")
                assert one.train_row.loss == LossKind.DISTIL
            assert (one.rollout.feedback_ids is not None) == any(one.rollout is failing for failing in failed)
        for one, rollout in zip(taught, failed, strict=True):
            np.testing.assert_array_equal(one.feedback_ids, rollout.feedback_ids)
            assert len(one.feedback_ids) > len(one.context_ids) + len(one.target_ids) - 1


def test_an_average_teaches_and_resumes_as_if_it_had_not_stopped(tmp_path):
    """Beside the policy's loss, whose refinements go on as before."""
    changes = {
        "data.num_eval": 0,
        "distil.kind": "added",
        "distil.divergence": "jensen_shannon",
        "distil.teacher": "average",
        "distil.average_rate": 0.25,
        "distil.top_tokens": 8,
        "optimizer.learning_rate": 1e-2,
    }
    whole = run(tmp_path / "whole", changes)
    run(tmp_path / "parts", changes, num_iterations=1)
    parts = run(tmp_path / "parts", changes)
    assert [len(metrics(folder)) for folder in (whole, parts)] == [2, 2]  # else one was stopped
    assert tiny_run.repeatable(parts) == tiny_run.repeatable(whole)
    for one, other in zip(*(_arrays(folder) for folder in (whole, parts)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(row["distil/tokens"] > 0 for row in metrics(whole))
    assert any(row.get("refined/prob", 0) > 0 for row in metrics(whole))  # left out where nothing is refined


def _arrays(folder):
    params = restore_params(folder, tiny_run.template())
    return [np.asarray(leaf) for _, leaf in sorted(params["layers"].items())]
