import json

import chat_server
import pytest
from chat_server import good, make

from cgrpo_jax.evaluation import behaviours
from cgrpo_jax.rewards.judge import Judge

server = chat_server.server  # the fixture


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("7*8=56. Answer: 56", set()),
        ("First, find 7*8. Next, add 3.", {"subgoals"}),
        ("In summary, it is 56.", {"summary"}),
        ("Let me verify: 56/8 = 7.", {"verification"}),
        ("It is 54. Wait, that is wrong. Try again: 56.", {"backtracking"}),
        ("Working backwards from 56, it was 7.", {"backward chaining"}),
        ("Be careful with the sign.", {"anticipation"}),
    ],
)
def test_key_words_tell_behaviours(text, shown):
    assert {name for name, is_shown in behaviours.by_words(text).items() if is_shown} == shown


def test_shares_are_of_all_answers():
    counts = behaviours.Counts()
    assert counts.shares() == {"answers": 0, "words": None}
    counts.add(["First, 2. Wait, 3.", "First, 4.", "5", "6"])
    found = counts.shares()
    assert found["answers"] == 4 and found["words"]["subgoals"] == 0.5 and found["words"]["backtracking"] == 0.25


def test_of_each_question_the_first_right_answer_is_judged():
    lines = [
        {"question": "a", "greedy": "g", "greedy_reward": 1.0, "samples": ["s"], "rewards": [1.0]},
        {"question": "b", "greedy": "g", "greedy_reward": 0.0, "samples": ["s", "t"], "rewards": [0.0, 1.0]},
        {"question": "c", "greedy": "g", "greedy_reward": 0.0},
        {"question": "d", "greedy": "g", "greedy_reward": 1.0},
    ]
    found = behaviours.right_answers(lines, threshold=1.0, most=9)
    assert found == [("a", -1, "g"), ("b", 1, "t"), ("d", -1, "g")]
    assert behaviours.right_answers(lines, threshold=1.0, most=1) == found[:1]


def test_a_judge_is_asked_for_all_six_and_what_it_says_is_kept(server, tmp_path):
    yes = "\n".join(f"{n}: {'yes' if n in (1, 4) else 'no'}" for n in range(1, 7))
    server.replies({"body": good(yes)}, {"body": good("no idea")})
    with make(server, max_attempts=1, concurrency=1) as endpoint:
        judge = Judge(endpoint, max_retries=0)
        records = behaviours.judge_all([("q", -1, "First, 2."), ("q", 0, "3")], judge)
    prompt = server.seen.get()[2]["messages"][0]["content"]
    assert all(question in prompt for question, _ in behaviours.BEHAVIOURS.values()) and "First, 2." in prompt
    assert [name for name, met in records[0]["judge"].items() if met] == ["subgoals", "backtracking"]
    assert records[1]["judge"] is None and records[0]["words"]["subgoals"]
    assert records[1]["failure"] == "its reply can't be read" and "failure" not in records[0]
    (tmp_path / behaviours.FILE).write_text("".join(json.dumps(one) + "\n" for one in records))
    found = behaviours.judged(tmp_path)
    assert found["judged"] == 1 and found["judge"]["subgoals"] == 1.0 and found["judge"]["summary"] == 0.0
    assert "subgoals" in behaviours.table(found)


def test_where_no_judge_was_asked_or_none_answered_nothing_is_made_up(tmp_path):
    assert behaviours.judged(tmp_path) == {}
    record = {"question": "q", "sample": 0, "words": behaviours.by_words(""), "judge": None}
    (tmp_path / behaviours.FILE).write_text(json.dumps(record) + "\n")
    assert behaviours.judged(tmp_path) == {"judged": 0}
    assert behaviours.table({"judged": 0}) == "the judge gave no verdict on behaviours\n"
    (tmp_path / behaviours.FILE).write_text(json.dumps(record | {"failure": "status 401"}) + "\n")
    assert behaviours.table(behaviours.judged(tmp_path)) == "the judge gave no verdict on behaviours: status 401\n"


def test_agreement_beyond_chance_is_cohens():
    assert behaviours.kappa([(True, True), (True, False), (False, False), (False, False)]) == 0.5
    assert behaviours.kappa([(True, True), (False, False)]) == 1.0
    assert behaviours.kappa([(True, False), (False, True)]) == -1.0
    assert behaviours.kappa([(False, False)] * 3) is None
