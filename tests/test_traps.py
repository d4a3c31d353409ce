"""The old mistakes of `benchmarks/traps.py` can still be put in, so that code which moves is seen at once."""

import ast

import pytest
import traps

BY_NAME = pytest.mark.parametrize("trap", traps.TRAPS, ids=lambda trap: trap.name)


def read(trap):
    return (traps.ROOT / "cgrpo_jax" / trap.file).read_text(encoding="utf-8")


@BY_NAME
def test_what_a_trap_replaces_stands_once_in_its_module(trap):
    text = read(trap)
    changed = trap.put_into(text)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))  # a mistake in code, which still is code


@BY_NAME
def test_what_is_to_catch_a_trap_is_there(trap):
    for test in trap.tests:
        file, _, function = test.partition("::")
        defined = [node.name for node in ast.parse((traps.ROOT / file).read_text()).body if hasattr(node, "name")]
        assert any(name.startswith("test_") for name in defined)
        assert not function or function in defined


def test_a_trap_has_a_name_of_its_own():
    assert len({trap.name for trap in traps.TRAPS}) == len(traps.TRAPS)


def test_a_trap_whose_text_is_gone_or_stands_twice_is_an_error():
    trap = traps.Trap("a mistake", "objective.py", "x = 1\n", "x = 2\n", (), more=(("y", "z"),))
    assert trap.put_into("x = 1\ny = 1\n") == "x = 2\nz = 1\n"
    for text, found in (("", 0), ("x = 1\n" * 2, 2)):
        with pytest.raises(ValueError, match=f"trap 'a mistake': objective.py holds 'x = 1.n' {found} times, not once"):
            trap.put_into(text)
    with pytest.raises(ValueError, match="holds 'y' 0 times"):
        trap.put_into("x = 1\n")
