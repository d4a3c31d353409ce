"""A user's own reward function in worker processes, with the signature that TRL calls."""

import re
import textwrap

import pytest

from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.rewards import grader as grader_lib

MODULE = """
    import json, os, re, sys, time

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

    def turns(prompts, completions, **kwargs):
        said = [[(one["role"], one["content"]) for one in prompt] for prompt in prompts]
        return [float(one == [("system", "Think."), ("user", "2 + 3?")]) for one in said]

    def question(prompts, completions, **kwargs):
        return [float(one == "2 + 3?") for one in prompts]

    def hostile(completions, **kwargs):
        raise ValueError(chr(0xd800))

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
        odd = {"none": [None, 1.0], "nan": [float("nan"), 1.0], "short": [1.0], "text": ["x", 1.0], "number": 1.0}
        return odd[completions[0]]

    def fails(completions, **kwargs):
        if "bad" in completions:
            raise ValueError("no such" + chr(10) + "luck")  # line LUCK
        if "late" in completions:
            raise TimeoutError("the service is slow")
        if "elsewhere" in completions:
            json.loads("{")  # line JSON
        if "leave" in completions:
            sys.exit("enough")
        if "hang" in completions:
            time.sleep(60)
        if "exit" in completions:
            os._exit(7)
        return [1.0] * len(completions)

    def forgets(completions, **kwargs):
        [1.0 for _ in completions]

    def one_number(completions, **kwargs):
        return 0.5

    def asks(completions, level):
        return [1.0 for _ in completions]

    number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "my_rewards.py"
    path.write_text(textwrap.dedent(MODULE))
    return path


def score(file, name, responses, answer="", *, prompt="a question", columns=None, **options):
    with grader_lib.Grader(f"{file}:{name}", num_workers=1, timeout=options.pop("timeout", 30.0), **options) as grader:
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
    assert grader_lib.grade("my_rewards:contains", ["it is 7"], ["7"], timeout=30.0)[0].score == 1.0


def test_messages_where_the_annotation_or_the_configuration_says_so(file):
    assert scores(file, "thinks", ["<think>a</think>b", "b"]) == [1.0, 0.0]
    assert scores(file, "roles", ["a"], messages=True) == [1.0]


def test_messages_hold_the_turns_of_a_chat_and_a_text_its_question(file):
    chat = (("system", "Think."), ("user", "2 + 3?"))
    assert scores(file, "turns", ["5", "6"], prompt=chat, messages=True) == [1.0, 1.0]
    assert scores(file, "question", ["5"], prompt=chat) == [1.0]


def test_what_a_function_raises_may_hold_anything(file):
    with pytest.raises(GradingError, match="hostile' raised ValueError"):
        score(file, "hostile", ["5"])


def test_a_coroutine_function(file):
    assert scores(file, "later", ["a", "abcd"]) == [0.25, 1.0]


def test_all_responses_to_a_question_come_in_one_call(file):
    assert scores(file, "rank", [*"cab", *"fed", *"igh", "j"]) == [2, 0, 1, 5, 4, 3, 8, 6, 7, 9]


def test_a_function_that_takes_no_more_than_it_names(file):
    assert scores(file, "strict", ["a"], columns={"level": 4, "other": 5}) == [4.0]


def test_trls_loggers_are_there(file):
    assert scores(file, "logs", ["a"]) == [0.5]


@pytest.mark.parametrize("value", ["none", "nan"])
def test_no_reward_for_a_response_is_no_verdict_on_it(file, value):
    first, second = score(file, "odd", [value, "another"])
    said = {"none": "None", "nan": "nan"}[value]
    assert first == grader_lib.Grade(0.0, None, f"the reward function gave {said}", failed=True)
    assert second.score == 1.0 and not second.failed


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("short", "ValueError: it returned 1 rewards for 2 responses"),
        ("text", "ValueError: could not convert string to float: 'x'"),
        ("number", "TypeError: it returned 1.0, not a list of 2 rewards, one for each completion"),
    ],
)
def test_what_is_no_list_of_rewards_is_an_error(file, response, reason):
    with pytest.raises(
        GradingError, match=rf"^grader '\S+my_rewards.py:odd' raised {reason}; fix it, then give the same"
    ):
        score(file, "odd", [response, "another"])


def line_of(file, text):
    return next(number for number, line in enumerate(file.read_text().split("\n"), 1) if text in line)


@pytest.mark.parametrize(
    ("response", "reason", "at"),
    [
        ("bad", "ValueError: no such luck", "# line LUCK"),
        ("late", "TimeoutError: the service is slow", "raise TimeoutError"),
        ("elsewhere", "JSONDecodeError: Expecting property name.*", "# line JSON"),  # its own line, not that of json
        ("leave", "SystemExit: enough", "sys.exit"),
    ],
)
def test_what_a_function_raises_is_raised_in_one_line_with_its_place(file, response, reason, at):
    with pytest.raises(GradingError, match=rf"raised {reason} \({file}, line {line_of(file, at)}\); fix it") as raised:
        score(file, "fails", ["good", response])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("response", "reason", "timed_out"),
    [("hang", "timed out after 1 s", True), ("exit", "worker died (exit code 7)", False)],
)
def test_a_call_that_does_not_end_gives_no_verdict_on_any_response(file, response, reason, timed_out):
    """The scores of the others may depend on it; and two responses have twice the time of one."""
    with grader_lib.Grader(f"{file}:fails", num_workers=1, timeout=0.5) as grader:
        rows = [grader.submit(text, "") for text in ("good", response)]
        assert [row.result() for row in rows] == [grader_lib.Grade(0.0, None, reason, timed_out, failed=True)] * 2
        assert grader.submit("good", "another").result().score == 1.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "has no attribute 'missing'"), ("number", "number is a int, not a function")],
)
def test_a_function_that_can_not_be_loaded_is_an_error_when_loading(file, name, reason):
    grader_lib.check_gold(f"{file}:contains", ["anything", ""], timeout=30.0)
    with pytest.raises(UserError, match=f"{name}' can't be loaded: .*{reason}"):
        grader_lib.check_gold(f"{file}:{name}", ["7"], timeout=30.0)


def test_what_a_function_takes_and_gives_back_is_said(file):
    for name, said in (
        ("forgets", "TypeError: it returned None, not a list of 1 rewards, one for each completion"),
        ("one_number", "TypeError: it returned 0.5, not a list of 1 rewards, one for each completion"),
        ("asks", "TypeError: missing a required argument: 'level'; it may take answer, completion_ids, completions, "),
    ):
        with pytest.raises(GradingError, match=re.escape(said)):
            score(file, name, ["a"])
