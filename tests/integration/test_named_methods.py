"""Each method of configs/methods in miniature: it runs, and its weights move as its loss says."""

import numpy as np
import pytest
import tiny_run
from method_equations import FILES
from method_miniature import changes_of, compared, critic_compared, groups_of, train
from tiny_run import metrics, rollouts, run

from cgrpo_jax.records import Author, LossKind, Stage

ELSEWHERE = ("ladder_1", "ladder_2")  # as r1_grpo and dr_grpo


@pytest.mark.parametrize("name", sorted(FILES.keys() - set(ELSEWHERE)))
def test_a_method_in_miniature(name, tmp_path, monkeypatch):
    seen, changes = tiny_run.watch(monkeypatch), changes_of(name)
    folder, config, updates = train(name, tmp_path)
    first, second = metrics(folder)
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in (first, second)) and first != second
    for one in compared(name, folder, config, updates):
        assert -one.loss == pytest.approx(one.value, rel=2e-4, abs=1e-6)
        assert one.slope == pytest.approx(one.norm, rel=1e-3, abs=1e-6)
    refines = changes["refine.kind"] != "none"
    assert all(("refine/attempted" in row) == refines for row in (first, second))
    rows = [row for update in seen.updates for row in update if row.loss != LossKind.RCO]
    groups = groups_of(tiny_run.rollouts(folder))
    refined = [sum(one.rollout.stage == Stage.REFINEMENT for one in group) for group in groups]
    sizes = [len(group) for group in groups]
    assert any(row.refined for row in rows) == refines == any(refined)
    if name in ("critique_grpo_release", "luffy", "joint_critic"):
        assert set(refined) == {1}  # of every question, also of those that all responses pass
    if name == "weak_to_strong":
        refinements = [one.rollout for group in groups for one in group if one.rollout.stage == Stage.REFINEMENT]
        assert {one.author for one in refinements} == {Author.REFINER} and any(one.reward == 1 for one in refinements)
    if name in ("critique_grpo_release", "nurl"):
        assert set(sizes) == {4}
    if name == "nurl":
        assert set(refined) == {0, 3}
        assert all("Critique: " in text and "Tried: " not in text for text in seen.asked(Stage.REFINEMENT))
    if name == "rltf_sd":
        assert set(refined) == {4}
        for group in groups:
            first_turn = np.mean([one.rollout.reward for one in group if one.rollout.stage == Stage.RESPONSE])
            for one in group:
                assert one.train_row.advantage == pytest.approx(one.rollout.reward - first_turn, abs=1e-6)
    if name == "critique_coder":
        assert sum("Tried: " in text and "Check." in text for text in seen.asked(Stage.RESPONSE)) == 2 * 4
        assert all(0 <= row["verdicts/reward"] <= 1 for row in (first, second))
    if name == "dapo":
        assert any(row["batch/extra_questions"] > 0 for row in (first, second))
        dropped = {one.dropped for group in groups for one in group if one.rollout.truncated}
        assert dropped <= {"truncated", "zero_advantage"}


def test_the_critic_of_the_joint_loop_moves_as_its_loss_says(tmp_path):
    """Ten iterations, two updates each: value and slope of every one, in float64 from its rows and weights alone."""
    critics = []
    more = {"num_iterations": 10, "critic.training.learning_rate": 2e-3}
    folder, config, _ = train("joint_critic", tmp_path, critics, **more)
    learns = [any(_teaches(row.train_row) for row in rows) for rows in rollouts(folder)]
    assert len(learns) == 10 and len(critics) == 2 * sum(learns) > 0  # none where all critiques are worth the same
    for one in critic_compared(config, critics):
        assert -one.loss == pytest.approx(one.value, rel=2e-4, abs=1e-6)
        assert one.slope == pytest.approx(one.norm, rel=2e-3, abs=1e-6)
    rows = metrics(folder)
    assert [row["critic/rows_trained"] > 0 for row in rows] == learns
    assert [row.get("critic/kl", 0) != 0 for row in rows] == learns
    assert all(0 <= row["critic/utility"] <= 1 for row in rows)


def _teaches(row):
    """Returns whether a row's critique is preferred to, or less than, the others of its response."""
    return row is not None and row.loss == LossKind.RCO and row.advantage != 0


def test_replaced_responses_are_kept_in_the_rollouts(tmp_path):
    folder = run(tmp_path, changes_of("nurl"), num_iterations=1)
    (rows,) = rollouts(folder)
    replaced = [row for row in rows if row.dropped == "replaced"]
    kept = [row for row in rows if row.rollout.stage == Stage.REFINEMENT and row.place is not None]
    assert len(replaced) == len(kept) > 0 and all(row.train_row is None for row in replaced)


@pytest.mark.parametrize("corruption", ["inverted", "shuffled"])
def test_critiques_that_are_wrong_on_purpose(tmp_path, monkeypatch, corruption):
    seen = tiny_run.watch(monkeypatch)
    changes = {"data.num_eval": 0, "critique.corruption": corruption}
    folder = run(tmp_path, changes, num_iterations=1)
    (rows,) = rollouts(folder)
    critiques = [row.rollout for row in rows if row.rollout.stage == Stage.CRITIQUE]
    assert critiques and all(one.shown is not None and one.verdict is False for one in critiques)
    asked = seen.asked(Stage.REFINEMENT)
    assert len(asked) == len(critiques)
    assert all(("Conclusion: right" in text) == (corruption == "inverted") for text in asked)


@pytest.mark.parametrize("level", ["token", "sequence_mask"])
def test_rows_of_an_int8_cache_are_weighed_by_what_the_sampler_did_otherwise(tmp_path, monkeypatch, level):
    seen = tiny_run.watch(monkeypatch)
    changes = {"data.num_eval": 0, "cache.dtype": "int8", "objective.tis_cap": 2.0, "objective.tis_level": level}
    folder = run(tmp_path, changes, num_iterations=1)
    (row,) = metrics(folder)
    assert 0 < row["sampling/sampling_logp_difference/mean"] < row["sampling/sampling_logp_difference/max"]
    assert 0.5 < row["sampling/effective_sample_size"] < 1 and 0 <= row["sampling/frac_capped"] < 1
    ratios = [row[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
    assert ratios == sorted(ratios) and ratios[0] < 1 < ratios[2]
    sampled = {one.token_ids.tobytes(): one.logp for one in seen.of(Stage.RESPONSE)}
    for one in seen.updates[0]:
        if not one.refined:
            np.testing.assert_array_equal(one.sampler_logp, sampled[one.target_ids.tobytes()])
            assert not np.array_equal(one.old_logp, one.sampler_logp)


def test_several_rewards(tmp_path):
    """What passes and is refined is the gate's; the other reward moves the weights where that is equal."""
    file = tmp_path / "style.py"
    file.write_text(
        "def short(prompts, completions, **columns):\n"
        "    return [sum(map(ord, text)) % 7 / 7 for text in completions]\n"
    )
    changes = {"data.num_eval": 0, "refine.kind": "none", "grader.kind": "trace"}
    plain = run(tmp_path / "plain", changes, num_iterations=1)
    more = {"rewards": ("trace", f"{file}:short"), "reward_weights": (1.0, 0.1)}
    both = run(tmp_path / "both", changes | more, num_iterations=1)
    (before,), (after,) = metrics(plain), metrics(both)
    assert after["reward"] == after["rewards/trace/mean"] == before["reward"]
    assert 0 < after["rewards/short/mean"] < 1 and after["rows_trained"] >= before["rows_trained"]
    (rows,) = rollouts(both)
    for group in groups_of([rows]):
        total = [one.rollout.reward + 0.1 * one.rollout.rewards[0][1] for one in group]
        for one, value in zip(group, total, strict=True):
            assert one.grader == "trace" and one.rollout.rewards[0][0].endswith("style.py:short")
            assert one.rollout.rewards[0][1] == pytest.approx(sum(map(ord, one.rollout.text)) % 7 / 7)
            assert one.train_row.advantage == pytest.approx(value - np.mean(total), abs=1e-6)


@pytest.mark.parametrize("refine", ["none", "policy"])
def test_questions_are_drawn_on_and_the_run_resumes_where_it_was(tmp_path, refine):
    """The stream of questions has no gap, however it was stopped and however many texts decode at once."""
    changes = {
        "refine.kind": refine,
        "critique.kind": "indicative",  # after which few refinements are right: questions are drawn on after them, too
        "data.num_eval": 0,
        "max_extra_questions": 6,
        "verdict_share": 0.25,
        "max_prompt_length": 48,
    }
    whole = run(tmp_path / "whole", changes, num_iterations=3)
    run(tmp_path / "parts", changes, num_iterations=1)
    parts = run(tmp_path / "parts", changes, num_iterations=3)
    assert tiny_run.repeatable(parts) == tiny_run.repeatable(whole)
    few = run(tmp_path / "few", changes, num_iterations=3, **{"engine.num_slots": 2})
    asked = []
    for folder in (whole, parts, few):
        asked.append([])
        for rows, row in zip(rollouts(folder), metrics(folder), strict=True):
            questions = {one.rollout.index.question: one.problem for one in rows}
            groups = groups_of([rows])
            assert len(questions) == 4 + row["batch/extra_questions"]
            teach = [any(one.train_row.advantage for one in group) for group in groups]
            assert np.mean(teach) == row["batch/frac_with_gradient"] and len(groups) == 4
            out = {one.rollout.index.question for one in rows if one.dropped == "drawn_on"}
            assert len(out) == row["batch/extra_questions"]
            asked[-1] += [problem.index for _, problem in sorted(questions.items()) if problem.grader != "verdict"]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) > 9
    assert len(set(asked[0][:12])) == min(12, len(asked[0]))  # the first epoch, of twelve questions


def test_a_run_of_many_new_values_resumes_as_if_it_had_not_stopped(tmp_path):
    changes = {
        "data.num_eval": 0,
        "refine.which": "all",
        "refine.max_pass": 1.0,
        "refine.select": "random",
        "refine.group": "replace",
        "critique.corruption": "shuffled",
        "critique.corrupted_share": 0.5,
        "objective.initial_ratio": "sequence",
        "objective.tis_cap": 2.0,
        "objective.aggregate": "sequence_mean",
    }
    whole = run(tmp_path / "whole", changes)
    run(tmp_path / "parts", changes, num_iterations=1)
    parts = run(tmp_path / "parts", changes)
    assert tiny_run.repeatable(parts) == tiny_run.repeatable(whole)
    texts = [[(row.rollout.text, row.rollout.shown, row.dropped) for row in rows] for rows in rollouts(whole)]
    assert texts == [[(row.rollout.text, row.rollout.shown, row.dropped) for row in rows] for rows in rollouts(parts)]
    shown = [row.rollout.shown for rows in rollouts(whole) for row in rows if row.rollout.stage == Stage.CRITIQUE]
    assert any(shown) and not all(shown)
