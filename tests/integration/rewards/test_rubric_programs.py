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
    assert (first, third) == ("half(7) returns 3", "half(2) returns 1")
    assert second.startswith("half('a') raises TypeError: ") and second.endswith("in line 2: `return n // 2`")


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
