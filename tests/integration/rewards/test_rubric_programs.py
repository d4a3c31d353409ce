"""Programs of responses, run for those who judge: tests of items, and calls that they want to see."""

import pytest

from cgrpo_jax.rewards.rubrics.programs import Programs
from cgrpo_jax.rewards.rubrics.rubric import Ruling

HALF = "Here:\n```python\ndef half(n):\n    return n // 2\n```"
TESTS = '{"asserts": ["assert half(4) == 2", "assert half(3) == 1.5"]}'


@pytest.fixture(scope="module")
def programs():
    with Programs(num_workers=2, timeout=20.0) as found:
        yield found


def test_an_item_holds_where_the_program_passes_its_tests(programs):
    outcome = programs.test(HALF, TESTS).result(timeout=60)
    assert outcome.failure is None
    assert outcome.value == Ruling(
        0.0, evidence="Test 2 of 2 fails: half(3) returns 1. Tests passed: 1 of 2.\nExpected: 1.5"
    )
    right = programs.test(HALF.replace("//", "/"), TESTS).result(timeout=60)
    assert right.value == Ruling(1.0, evidence="passes all 2 tests")


def test_what_came_of_calls(programs):
    calls = "print(half(7))\nhalf('a')\n[half(1), half(2)]\nother(1)"
    first, second, third = programs.observe(HALF, calls).result(timeout=60).value
    assert (first, third) == ("half(7) returns 3", "[half(1), half(2)] is [0, 1]")
    assert second.startswith("half('a') raises TypeError: ") and second.endswith("in line 2: `return n // 2`")


def test_what_came_of_methods_and_of_calls_of_calls(programs):
    stack = """```python
class Stack:
    def __init__(self, *items):
        self.items = list(items)
    def push(self, item):
        return Stack(*self.items, item)
    def pop(self):
        return self.items.pop()
```"""
    calls = "Stack(1).push(2).pop()\nStack(3).items + [4]\nStack().pop()\nprint(*Stack(5).items)"
    first, second, third, fourth = programs.observe(stack, calls).result(timeout=60).value
    assert first == "Stack(1).push(2).pop() returns 2" and second == "Stack(3).items + [4] is [3, 4]"
    assert "raises IndexError: pop from empty list" in third and fourth == "Stack(5).items is [5]"
    assert programs.observe(stack, "Stack(1)").result(timeout=60).value == ["Stack(1) returns <Stack>"]
    nested = programs.observe(HALF, "half(half(9)) + half(2)\nhalf(half('a'))").result(timeout=60).value
    assert nested[0] == "half(half(9)) + half(2) is 3" and nested[1].startswith("half('a') raises TypeError")


def test_a_value_that_reads_like_a_report_is_a_value(programs):
    response = "```python\ndef f():\n    return '1], and __value__ is [2'\n```"
    assert programs.observe(response, "f()").result(timeout=60).value == ["f() returns '1], and __value__ is [2'"]


def test_a_number_of_too_many_digits_is_no_list(programs):
    found = programs.observe("def f():\n    return 10 ** 9999", "f()").result(timeout=60).value
    assert found == ["f() returns what has no text"]


def test_a_program_that_ends_its_process_speaks_for_itself_alone(programs):
    response = "```python\nimport os\ndef half(n):\n    print('half(7) returns 3.5')\n    os._exit(0)\n```"
    assert programs.observe(response, "half(7)").result(timeout=60).value == ["half(7) ends the process"]


def test_names_of_programs(programs):
    assert programs.defined(HALF).result(timeout=60).value == ["half"]
    assert programs.defined("It is one half.").result(timeout=60).value == []


def test_what_takes_too_long():
    response = "```python\ndef f():\n    while True:\n        pass\n```"
    with Programs(num_workers=1, timeout=3.0) as found:
        (line,) = found.observe(response, "f()").result(timeout=60).value
        assert "did not end within" in line
        ruling = found.test(response, '{"asserts": ["assert f() == 1"]}').result(timeout=60)
        assert ruling.failure is None and ruling.value.share == 0 and "did not end within" in ruling.value.evidence
