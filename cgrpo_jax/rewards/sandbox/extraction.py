"""The program in a response.

A response is Markdown. Of its blocks those in Python, or in no language, are read as syntax, and joined as the cells of
a notebook are, but only those that are needed:

  - where tests name what they take from the program: for each name the last block that defines it, else the last that
    imports it;
  - where the program is a script: the last block that by itself reads its input and prints; else the last that does so
    with blocks before it; else the last that prints, likewise;
  - before each, blocks that define names which it uses and does not have.

Where no block fits, it is the last in Python, else the last, else all of the response.
"""

import ast
import builtins
import dataclasses
import functools
import re
import textwrap
import warnings
from collections.abc import Callable, Collection, Sequence

from cgrpo_jax.rewards.sandbox.markdown import blocks_of
from cgrpo_jax.rewards.sandbox.names import names_in

_NESTS = ("", "markdown", "md", "mdx", "text", "txt", "plaintext")  # languages of blocks that may hold blocks
_OF_MODULES = {*dir(builtins), "__name__", "__file__", "__doc__", "__annotations__", "__builtins__"}
_MOST_BLOCKS = 64  # that are read as syntax
_TAGS = re.compile(r"^[ \t]*\[/?PYTHON\](?=[ \t]*$)", re.MULTILINE)  # as prompts of MBPP have them
_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_READS = {"input", "raw_input", "stdin", "fileinput", "/dev/stdin"}
_PRINTS = {"print", "stdout", "/dev/stdout"}
_SETTINGS = {"setrecursionlimit", "stack_size", "seed", "set_int_max_str_digits", "simplefilter", "filterwarnings"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Syntax:
    """What a piece of Python does with names.

    Attributes:
      code: the piece.
      defined: names that it defines.
      imported: names that it imports.
      bound: both.
      free: names that it uses and does not have; none of Python's own.
      acts: it does more than define and import.
      reads, prints: it looks as if it read its input, and printed.
    """

    code: str
    defined: frozenset[str]
    imported: frozenset[str]
    bound: frozenset[str]
    free: frozenset[str]
    acts: bool
    reads: bool
    prints: bool


def program_of(response: str, names: Collection[str] = (), known: Collection[str] = ()) -> str:
    """Returns the program in a response.

    Args:
      response: what the model wrote.
      names: what tests take from the program; none if it is a script.
      known: names that it has from elsewhere.

    Example:
      >>> program_of("So:\\n```python\\nprint(1)\\n```\\nDone.")
      'print(1)\\n'
      >>> program_of("```python\\ndef f(): return 1\\n```\\nFor example:\\n```python\\nprint(f())\\n```", ["f"])
      'def f(): return 1\\n'
    """
    text = response.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    text = _TAGS.sub("```python", text) if "```" not in text else text
    blocks = [part for block in blocks_of(text)[-_MOST_BLOCKS:] for part in _parts(block)][-_MOST_BLOCKS:]
    if not blocks or _syntax(text) is not None:
        return _dedented(text, names)
    if len(blocks) == 1:
        return _dedented(blocks[0].code, names)
    last = ([block for block in blocks if block.python] or blocks)[-1].code
    candidates = [block for block in blocks if block.python or not block.language] or blocks
    pieces = _pieces(candidates, names)
    if names and len(candidates) < len(blocks) and not any(piece.bound.intersection(names) for piece in pieces):
        candidates = blocks  # in the guise of another language
        pieces = _pieces(candidates, names)
    if len(candidates) == 1:
        return _dedented(candidates[0].code, names)
    found = _by_names(pieces, names, frozenset(known)) if names else _script(pieces, frozenset(known))
    if found:
        return "\n".join(piece.code for piece in pieces if piece in found)
    broken = [block.code for block in candidates if any(_looks_defined(name, block.code) for name in names)]
    return _dedented(broken[-1] if broken else last, names)


def bound_names(source: str) -> Collection[str]:
    """Returns the names that a piece of Python defines or imports; those of one that is no Python are not known."""
    found = _syntax(source) or _syntax(f"{source.rstrip()}\n    pass")
    return found.bound if found else ()


def defines(program: str, name: str) -> bool:
    """Returns whether a program defines or imports a name; of one that is no Python, whether it looks so."""
    found = _syntax(program)
    return _looks_defined(name, program) if found is None else name in found.bound


def _pieces(blocks, names):
    found = [_syntax(_dedented(block.code, names)) for block in blocks]
    return [piece for piece in found if piece is not None]


def _looks_defined(name, code):
    return re.search(rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{name}\b|^{name}[ \t]*[:=]", code, re.MULTILINE) is not None


def _parts(block):
    """The blocks that a block is: itself, where it is Python or nothing in it looks like a fence."""
    if not block.inner or _syntax(block.code) is not None:
        return [block]
    if block.language in _NESTS and (found := blocks_of(block.code)):
        return found
    return blocks_of(f"```{block.info}\n{block.code}", careful=False)


# --- syntax -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2 * _MOST_BLOCKS)
def _syntax(code):
    """What a piece of Python does with names; None if it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the model wrote
            used, defined, imported = names_in(code)
            tree = ast.parse(code)
    except _NO_PYTHON:
        return None
    words, everything = set(), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            words.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            everything |= node.names[0].name == "*"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open" and node.args:
            words |= {"stdin"} if getattr(node.args[0], "value", None) == 0 else set()
    return _Syntax(
        code,
        frozenset(defined),
        frozenset(imported),
        frozenset(defined | imported),
        frozenset() if everything else frozenset(used - defined - imported - _OF_MODULES),
        any(_acts(statement) for statement in tree.body),
        bool(words & _READS),
        bool(words & _PRINTS),
    )


def _acts(statement):
    """Does a statement of a module do more than define, import and set?"""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr):
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        return any(getattr(node.func, "attr", "") not in _SETTINGS for node in calls)
    return not isinstance(statement, ast.Pass)


def _dedented(code, names):
    """The code without indentation that all of it has, where it is a program then and was none before."""
    if not code[:1].isspace() or _syntax(code) is not None:
        return code
    less = textwrap.dedent(code)
    found = _syntax(less)
    return less if found and (found.bound.intersection(names) if names else found.acts) else code


# --- the choice -------------------------------------------------------------------------------------------------------


def _by_names(pieces, names, known):
    """The pieces that define what is tested, and what these need."""
    found = []
    for name in names:
        piece = _last(pieces, lambda piece, name=name: name in piece.defined)
        piece = piece or _last(pieces, lambda piece, name=name: name in piece.imported)
        found += [piece] if piece else []
    return _with_needed(found, pieces, known)[0]


def _script(pieces, known):
    """The pieces that make a script: one that acts, and what it needs."""
    found = [_with_needed([piece], pieces, known) for piece in pieces if piece.acts]
    found = [(needed, lacks) for needed, lacks in reversed(found) if any(piece.prints for piece in needed)]
    fits: Sequence[Callable] = (
        lambda needed, lacks: any(piece.reads for piece in needed),
        lambda needed, lacks: len(needed) == 1,
        lambda needed, lacks: not lacks,
    )
    best = max(found, key=lambda one: [fit(*one) for fit in fits], default=None)
    return best and best[0]


def _with_needed(found, pieces, known):
    """The pieces with those before them that define what they use; are there names that none defines?"""
    needed, left, lacks = list(found), list(found), False
    while left:
        piece = left.pop()
        before = pieces[: pieces.index(piece)]
        for name in sorted(piece.free - known):
            if not any(name in one.bound for one in needed):
                other = _last(before, lambda one, name=name: name in one.bound)
                lacks |= other is None
                needed += [other] if other else []
                left += [other] if other else []
    return needed, lacks


def _last(pieces, fits):
    return next((piece for piece in reversed(pieces) if fits(piece)), None)
