import pytest
import report_runs

from cgrpo_jax.report import details, groups, payload, run_folder, selection
from cgrpo_jax.report.groups import Asked, Group, Outcome
from cgrpo_jax.report.lessons import Failed, Lessons, Said, solved_by_step, solved_by_unseen

SAID, OTHER, WORDY = "Step 2 is wrong.", "Step 1 is wrong.", "x" * 301


def row(number, stage, text="", parent=None, reward=None, **columns):
    return {"row": number, "stage": stage, "text": text, "parent": parent, "reward": reward} | columns


def detail(critique, *, first=0.0, refined=1.0, **columns):
    rows = [row(0, "response", reward=first), row(1, "critique", critique, parent=0)]
    return {"rows": [*rows, row(2, "refinement", parent=1, reward=refined, **columns)]}


def test_critiques_are_counted_with_what_came_of_the_refinements_after_them():
    lessons = Lessons(1.0)
    lessons.add(0, detail(SAID, trained=True))
    lessons.add(1, detail(SAID, refined=0.0))
    lessons.add(2, detail(SAID, first=1.0))  # of a response that was right
    lessons.add(3, detail(SAID, refined=None))  # without a verdict
    lessons.add(4, detail(OTHER))  # said once
    for at in (5, 6):
        lessons.add(at, detail(WORDY))  # which nobody says twice in the same words
    assert lessons.most() == [[SAID, 2, 1, 1, 0, 0]]


def test_the_critiques_that_led_to_most_right_refinements_are_first():
    lessons = Lessons(1.0)
    for at, (text, refined) in enumerate([(OTHER, 1.0), (OTHER, 0.0), (SAID, 1.0), (SAID, 1.0)]):
        lessons.add(at, detail(text, refined=refined))
    assert [text for text, *_ in lessons.most()] == [SAID, OTHER]


def test_a_group_has_the_critique_of_the_refinement_that_was_kept():
    lessons = Lessons(1.0)
    two = detail(OTHER, refined=0.0)
    two["rows"] += [row(3, "critique", SAID, parent=0), row(4, "refinement", parent=3, reward=1.0, kept=True)]
    lessons.add(0, two)
    lessons.add(1, detail(OTHER, refined=0.0))
    lessons.add(2, {"rows": [row(0, "response", reward=1.0)]})
    assert {at: said.text for at, said in lessons.said.items()} == {0: SAID, 1: OTHER}


def test_a_critique_is_compared_with_the_grader_and_with_the_gold_answer():
    lessons = Lessons(1.0)
    for at, (verdict, first, states) in enumerate([(False, 0.0, True), (True, 0.0, False), (None, 0.0, False)]):
        one = detail(SAID, first=first)
        one["rows"][1] |= {"verdict": verdict, "states": states}
        lessons.add(at, one)
    assert lessons.said == {0: Said(SAID, True, True), 1: Said(SAID, False, False), 2: Said(SAID, None, False)}
    assert lessons.most() == [[SAID, 3, 3, 0, 1, 1]]


def test_wrong_refinements_are_told_by_whether_they_have_the_step_that_the_critique_names():
    lessons = Lessons(1.0)
    named = "Step 2 is wrong: 4*7=28, not 11. Conclusion: wrong [END]"
    one = detail(named, refined=0.0)
    one["rows"][0]["text"], one["rows"][2]["text"] = "4*7=11", "4*7=28, 8*3=11"
    one["rows"] += [
        row(3, "critique", named, parent=0),
        row(4, "refinement", "14*7=28", parent=3, reward=0.0, kept=True),
    ]
    lessons.add(0, one)
    lessons.add(1, detail(SAID, refined=0.0))  # which names none
    right = detail(named)
    right["rows"][2]["text"] = "4*7=28"
    lessons.add(2, right)
    assert lessons.failed == {0: Failed(2, 2, 1, "4*7=11", named, "14*7=28"), 1: Failed(1, 0, 0, "", SAID, "")}
    assert lessons.steps == {"4*7=28": [3, 1]} and lessons.took == [[2, 1], [1, 1]]


def test_a_step_is_followed_through_the_questions_whose_solution_has_it(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=9, questions=6))
    found, asked = groups.read(run)
    late = {group.problem for group in found if group.iteration >= 6}
    problem = next(group.problem for group in found if group.problem in late and group.iteration < 3)
    one, own = asked[problem], [group for group in found if group.problem == problem]
    shares = []
    for third in (range(3), range(6, 9)):
        some = [group for group in own if group.iteration in third]
        shares.append([sum(group.passed for group in some), 4 * len(some)])
    steps = {one.solution: [5, 4], "nowhere": [9, 9]}
    assert solved_by_step(steps, found, asked) == [[one.solution, 5, 4, 1, *shares]]
    assert [0, 0] not in shares
    assert solved_by_step({}, [], {"x": Asked(0, "", "")}) == []


def test_what_was_never_shown_is_followed_through_the_questions_that_need_it_by_what_was_gained():
    def group(iteration, problem, passed):
        rest = Outcome.MIXED, frozenset(), 0, False
        return Group(0, iteration, 0, problem, (0.0, 1.0), passed, 0, 0, 0, 0, *rest)

    found = [group(0, "x", 0), group(0, "y", 1), group(1, "x", 1), group(2, "x", 2), group(2, "y", 1), group(2, "z", 0)]
    unseen = {"9*9=81": ["z"], "dofu (*7)": ["y"], "6*7=42": ["x", "y"]}
    assert solved_by_unseen(unseen, {"6*7=42": [5, 4]}, found) == [
        ["6*7=42", 5, 4, 2, [1, 4], [3, 4]],
        ["9*9=81", 0, 0, 1, [0, 0], [0, 2]],
        ["dofu (*7)", 0, 0, 1, [1, 2], [1, 2]],
    ]


def test_the_token_that_a_critique_helped_most_is_of_a_trained_right_refinement():
    scored = {"logp": [-100, -200, -300], "trainer_logp": [-100, -60_200, None]}
    lessons = Lessons(1.0)
    lessons.add(0, detail(SAID, **scored))  # not trained
    lessons.add(1, detail(SAID, refined=0.0, trained=True, **scored))
    assert lessons.token == (0.0, None)
    lessons.add(2, detail(SAID, trained=True, **scored))
    assert lessons.token == (pytest.approx(60_000 / details.LOGP_SCALE), (2, 2, 1))


def test_texts_hand_on_what_the_critiques_of_a_run_said(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=4, questions=6))
    found, asked = groups.read(run)
    texts = payload.texts([run], found, selection.choose(found, max_groups=50))
    refined = [at for at, group in enumerate(found) if group.refined]
    assert sorted(texts.said) == refined and all("Conclusion: wrong" in one.text for one in texts.said.values())
    assert all(one.agrees and one.states for one in texts.said.values())  # "2*3 is 6, not 7. Conclusion: wrong"
    assert payload.index(found, asked, texts.places, texts.said)["said"] == {
        str(at): said for at, said in texts.said.items()
    }
    (most,) = texts.critiques
    assert most and all(written >= passed >= trained for _, written, passed, trained, *_ in most)
    assert all(agreeing == stating == written for _, written, _, _, agreeing, stating in most)
    (example,) = texts.examples
    assert example and example["solution"].endswith(f"is {example['answer']}")
