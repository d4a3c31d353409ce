"""Which calls somebody asks to see; running them is in tests/integration/rewards/test_rubric_programs.py."""

import pytest

from cgrpo_jax.rewards.sandbox import observe


@pytest.mark.parametrize(
    ("response", "names"),
    [
        ("```python\ndef f(x):\n    return x\n\nclass Stack:\n    pass\n```", ["f", "Stack"]),
        ("def g():\n    return 1", ["g"]),
        ("```python\nprint(1)\n```", []),
        ("It is Paris.", []),
        ("Paris", []),
        ("```python\ndef f(:\n```", []),
        ("(" * 5000, []),
        ("", []),
    ],
)
def test_the_names_that_a_program_defines(response, names):
    assert observe.defined(response) == names


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        ("f(1)\nf(2)", ["f(1)", "f(2)"]),
        ("```python\nprint(f(1), 2, g(3))\nassert f(2) == 3\nx = f(4)\n```", ["f(1)", "g(3)", "f(2)", "f(4)"]),
        ("Call these:\n- `f([])`\n- f(1)", ["f([])", "f(1)"]),
        ("f(1)\nf( 1 )\nf(2)\nf(3)\nf(4)\nf(5)", ["f(1)", "f(2)", "f(3)", "f(4)"]),
        ("f(" + "1, " * 300 + ")", []),
        ("import os\nfor i in range(3):\n    f(i)", []),
        ("I would try f at its limits.", []),
        ("(" * 5000, []),
        ("", []),
    ],
)
def test_the_calls_that_are_asked_for(asked, calls):
    assert observe.calls_of(asked) == calls
