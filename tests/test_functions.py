"""A user's own reward function in worker processes, with the signature that TRL calls."""

import logging
import textwrap

import pytest

from cgrpo_jax import rewards
from cgrpo_jax.errors import UserError

MODULE = """
    import os, re, sys, time

    def contains(prompts, completions, completion_ids=None, **columns):
        assert completion_ids is None and len(prompts) == len(completions) == len(columns["answer"])
        return [1.0 if answer in text else 0.0 for text, answer in zip(completions, columns["answer"])]

    # As in TRL's documentation of custom reward functions.
    def boxed(completions, ground_truth, **kwargs):
        matches = [re.search(r"\\\\boxed\\{(.*?)\\}", completion) for completion in completions]
        contents = [match.group(1) if match else "" for match in matches]
        return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]

    def thinks(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
        return [float(bool(re.match("<think>", completion[0]["content"]))) for completion in completions]

    def roles(prompts, completions, **kwargs):
        return [float(p[-1]["role"] == "user" and c[0]["role"] == "assistant") for p, c in zip(prompts, completions)]

    async def later(completions, **kwargs):
        return [0.25 * len(completion) for completion in completions]

    def rank(completions, **kwargs):
        return [float(sorted(completions).index(one)) for one in completions]

    def strict(prompts, completions, level):
        return [float(level[0])] * len(prompts)

    def logs(completions, log_extra=None, log_metric=None, **kwargs):
        log_extra("text", completions)
        log_metric("mean", 0.5)
        return [0.5] * len(completions)

    def odd(completions, **kwargs):
        return {"none": [None], "nan": [float("nan")], "short": [], "text": ["x"]}[completions[0]]

    def fails(completions, **kwargs):
        if "bad" in completions:
            raise ValueError("no such luck")
        if "hang" in completions:
            time.sleep(60)
        if "exit" in completions:
            os._exit(7)
        return [1.0] * len(completions)

    number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "my_rewards.py"
    path.write_text(textwrap.dedent(MODULE))
    return path


def score(file, name, responses, answer="", *, prompt="a question", columns=None, **options):
    with rewards.Grader(f"{file}:{name}", num_workers=1, timeout=options.pop("timeout", 30.0), **options) as grader:
        pending = [grader.submit(text, answer, prompt=prompt, columns=columns) for text in responses]
        return [row.result() for row in pending]


def scores(*arguments, **options):
    return [grade.score for grade in score(*arguments, **options)]


def test_a_function_of_a_file_gets_texts_and_the_gold_answer(file):
    assert scores(file, "contains", ["it is 7", "it is 8"], "7") == [1.0, 0.0]
    assert score(file, "contains", ["it is 7"], "7")[0].reason == "the reward function gave 1"


def test_a_function_gets_the_columns_of_the_row(file):
    columns = {"ground_truth": "7", "prompt": "not this one", "answer": "as in the file #### 7"}
    assert scores(file, "boxed", [r"\boxed{7}", r"\boxed{8}", "7"], columns=columns) == [1.0, 0.0, 0.0]


def test_the_gold_answer_is_the_one_that_was_read_from_the_row(file):
    assert scores(file, "contains", ["7", "8"], answer="7", columns={"answer": "long solution #### 8"}) == [1.0, 0.0]


def test_a_function_of_a_module(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert rewards.grade("my_rewards:contains", ["it is 7"], ["7"], timeout=30.0)[0].score == 1.0


def test_messages_where_the_annotation_or_the_configuration_says_so(file):
    assert scores(file, "thinks", ["<think>a</think>b", "b"]) == [1.0, 0.0]
    assert scores(file, "roles", ["a"], messages=True) == [1.0]


def test_a_coroutine_function(file):
    assert scores(file, "later", ["a", "abcd"]) == [0.25, 1.0]


def test_all_responses_to_a_question_come_in_one_call(file):
    assert scores(file, "rank", [*"cab", *"fed", *"igh", "j"]) == [2, 0, 1, 5, 4, 3, 8, 6, 7, 9]


def test_a_function_that_takes_no_more_than_it_names(file):
    assert scores(file, "strict", ["a"], columns={"level": 4, "other": 5}) == [4.0]


def test_trls_loggers_are_there(file):
    assert scores(file, "logs", ["a"]) == [0.5]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("none", "the reward function gave None"),
        ("nan", "the reward function gave nan"),
        ("short", "it returned 0 rewards for 1 responses"),
        ("text", "could not convert string to float"),
    ],
)
def test_what_is_no_reward_scores_0(file, response, reason):
    (grade,) = score(file, "odd", [response])
    assert grade.score == 0.0 and reason in grade.reason


def test_a_failure_costs_its_response_alone_and_is_said_once(file, caplog):
    with caplog.at_level(logging.WARNING):
        grades = score(file, "fails", ["good", "bad", "fine", "hang", "exit", "bad"], timeout=2.0)
    assert [grade.score for grade in grades] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert [grade.timed_out for grade in grades] == [False, False, False, True, False, False]
    assert "ValueError: no such luck" in grades[1].reason and "worker died (exit code 7)" in grades[4].reason
    (record,) = caplog.records
    assert "my_rewards.py:fails: grader failed: ValueError: no such luck" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "has no attribute 'missing'"), ("number", "number is a int, not a function")],
)
def test_a_function_that_can_not_be_loaded_is_an_error_when_loading(file, name, reason):
    rewards.check_gold(f"{file}:contains", ["anything", ""], timeout=30.0)
    with pytest.raises(UserError, match=f"{name}' can't be loaded: .*{reason}"):
        rewards.check_gold(f"{file}:{name}", ["7"], timeout=30.0)
