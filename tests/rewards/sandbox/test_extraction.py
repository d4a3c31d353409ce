"""The program in a response."""

import time

import pytest

from cgrpo_jax.rewards.sandbox.extraction import program_of
from cgrpo_jax.rewards.sandbox.markdown import blocks_of

F = "def f(x):\n    return x + 1\n"
DOC = '''def f(x):
    """Adds one.

    ```python
    >>> f(1)
    ```

    ~~~
    2
    ~~~
    """
    return x + 1
'''
FLAT_DOC = DOC.replace("\n    ```", "\n```").replace("\n    ~~~", "\n~~~")


def indented(text, by):
    return "".join(by + line if line.strip() else line for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("Thus\n```python\nx = 1\n```\nor\n```py\nx = 2\n```\nOutput:\n```\n2\n```", "x = 2\n"),
        ("Thus\n```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("  ```Python title=a\n  x = 1\n  ```", "x = 1\n"),
        ("```python\ns = '''a```b'''\n```", "s = '''a```b'''\n"),
        ("```python\nx = 1\n```\n```", "x = 1\n"),
        ("a\n\t```\t py \nx = '\x0c\u2028'\n\n```b\ny", "x = '\x0c\u2028'\n\n"),
        ("```python", "```python"),
    ],
)
def test_program_of(response, program):
    assert program_of(response) == program


def test_finding_the_program_takes_linear_time():
    """An eighth of a megabyte each; in quadratic time one alone takes minutes of the CPU."""
    size = 1 << 17
    texts = [part * (size // len(part)) for part in ("```", "```\n", "```python\n", "`", "\n", " ", "\t\n", "a```\n")]
    texts += ["```" + " " * (size // 2) + "a" * (size // 2), "```\n" + " \t" * (size // 2)]
    texts += [
        "~~~~\n```\n" * (size // 9),
        "```python\n" + "'" * size,
        "> " * (size // 2) + "```\n",
        "1. " * (size // 3),
    ]
    start = time.process_time()
    for text in texts:
        program_of(text, ["f"])
    assert time.process_time() - start < 20


FENCED = {
    "plain": f"```python\n{F}```",
    "no language": f"```\n{F}```",
    "tildes": f"~~~python\n{F}~~~",
    "longer": f"`````python\n{F}`````",
    "closed by a longer one": f"```python\n{F}`````",
    "py": f"```py\n{F}```",
    "Python3": f"```Python3\n{F}```",
    "python 3": f"```python 3\n{F}```",
    "py3": f"```py3\n{F}```",
    "python3.11": f"```python3.11\n{F}```",
    "attributes": f"```{{.python}}\n{F}```",
    "more attributes": f"```{{.python .numberLines startFrom=1}}\n{F}```",
    "of a notebook": f"```{{python}}\n{F}```",
    "title": f'```python title="x.py"\n{F}```',
    "file": f"```python:x.py\n{F}```",
    "space": f"``` python\n{F}```",
    "spaces behind": f"```python  \n{F}```   \n",
    "ipython": f"```ipython\n{F}```",
    "unclosed": f"```python\n{F}",
    "closed on its last line": f"```python\n{F.rstrip()}```",
    "opened in a line": f"The code: ```python\n{F}```\n",
    "in a list": "1. Solution:\n\n" + indented(f"```python\n{F}```\n", "    "),
    "in a list of lists": "1. a\n   - b:\n\n" + indented(f"```python\n{F}```\n", "     "),
    "behind a number": f"1. ```python\n{indented(F, '   ')}   ```\n",
    "behind a dash": f"- ```python\n{indented(F, '  ')}  ```\n",
    "tabs": indented(f"```python\n{F}```\n", "\t"),
    "tab and spaces": f"\t```python\n{indented(F, '    ')}\t```\n",
    "closed further left": f"   ```python\n{indented(F, '   ')}```\n",
    "closed a little to the right": f"```python\n{F}   ```\nDone.",
    "closed far to the right": f"```python\n{F}      ```\nDone.",
    "fence not indented, content is": f"```python\n{indented(F, '    ')}```",
    "fence indented, content not": f"    ```python\n{F}    ```",
    "quoted": indented(f"```python\n{F}```\n", "> "),
    "quoted twice": indented(f"```python\n{F}```\n", ">> "),
    "quoted closely": indented(f"```python\n{F}```\n", ">"),
    "quoted, never closed": indented(f"```python\n{F}", "> ") + "So it adds one.",
    "carriage returns": f"Code:\n```python\n{F}```\nDone.\n".replace("\n", "\r\n"),
    "carriage returns alone": f"```python\n{F}```\n".replace("\n", "\r"),
    "byte order mark": f"\ufeff```python\n{F}```\n",
    "within Markdown": f"````markdown\n# Code\n\n```python\n{F}```\n````",
    "within Markdown of the same fence": f"```markdown\n```python\n{F}```\n```",
    "another language after": f"```python\n{F}```\n```bash\npython x.py\n```\n```text\n2\n```\n```output\n2\n```",
    "no language after": f"```python\n{F}```\nOutput:\n```\n2\n```",
    "no language, and output after": f"```\n{F}```\nOutput:\n```\n2\n```",
    "another language before": f"```c\nint f(int x);\n```\n```python\n{F}```",
    "an example after": f"```python\n{F}```\nTest it:\n```python\nprint(f(1))\n```",
    "a test after": f"```python\n{F}```\n```python\nclass T(TestCase):\n    def test(self): f(1)\n```",
    "an example that imports it": f"```python\n{F}```\n```python\nfrom solution import f\nprint(f(1))\n```",
    "an example with a result": f"```python\n{F}```\n```python\nresult = f(1)\n```",
    "an example without a language": f"```python\n{F}```\n```\n>>> f(1)\n2\n```",
    "a Python example of a program without a language": f"```\n{F}```\n```python\nf(1)\n```",
    "of another language by name": f"```text\n{F}```\n```python\nf(1)\n```",
    "quoted in a list": "- " + indented(f"```python\n{F}```\n", "  > ").removeprefix("  "),
    "in brackets": f"(```python\n{F}```)\n",
    "a full stop behind": f"```python\n{F}```.\nDone.",
    "an older program": f"```python\ndef f(x):\n    return x\n```\nBetter:\n```python\n{F}```",
    "a broken one before": f"```python\ndef f(x:\n    ''' return\n```\nRight:\n```python\n{F}```",
    "one cut off after": f"```python\n{F}```\nShorter:\n```python\ndef f(x):\n    return (x +",
    "never closed before the next": f"```python\nprint(1)\n\n```python\n{F}```",
    "without fences": F,
}  # fmt: skip


@pytest.mark.parametrize("response", FENCED.values(), ids=FENCED.keys())
def test_the_block_that_defines_what_is_tested(response):
    assert program_of(response, ["f"]).strip() == F.strip()


@pytest.mark.parametrize("doc", [DOC, FLAT_DOC], ids=["indented", "flat"])
@pytest.mark.parametrize("marker", ["```", "~~~", "````"])
@pytest.mark.parametrize("language", ["python", ""])
@pytest.mark.parametrize("space", ["", "    "], ids=["at the left", "in a list"])
def test_fences_in_a_docstring_are_content(doc, marker, language, space):
    text = indented(f"{marker}{language}\n{doc}{marker}\n", space)
    assert program_of(f"So:\n\n{text}\nDone, with ``` in a line.\n```text\nx\n```\n", ["f"]) == doc


def test_fences_in_a_docstring_of_a_program_without_fences():
    assert program_of(DOC, ["f"]) == DOC and program_of(FLAT_DOC, ["f"]) == FLAT_DOC


@pytest.mark.parametrize(
    ("blocks", "names", "kept"),
    [
        (["import math", "def f(x): return math.pi", "f(1)"], ["f"], [0, 1]),
        (["def g(x): return 1", "def f(x): return g(x)"], ["f"], [0, 1]),
        (["def g(x): return h(x)", "h = 3", "def f(x): return g(x)"], ["f"], [0, 2]),  # h comes later
        (["class A: pass", "def f(x): return A()"], ["A", "f"], [0, 1]),
        (["class A: pass\ndef f(x): pass", "def f(x): return A()"], ["A", "f"], [0, 1]),
        (["def f(x): return 1", "def f(x): return f2(x)", "def f2(x): pass"], ["f"], [1]),
        (["from math import *", "def f(x): return pi"], ["f"], [1]),
        (["from math import gcd", "print(gcd(1, 2))"], ["gcd"], [0]),
        (["def f(x): return 1", "from m import f"], ["f"], [0]),
        (["if True:\n    def f(x): pass", "f(1)"], ["f"], [0]),
        (["x = 1", "y = 2"], ["f"], [1]),
        # scripts
        (["print(int(input()) + 1)", "print(1 + 1)"], [], [0]),
        (["def f(x): return x\nprint(f(int(input())))", "print(f(1))"], [], [0]),
        (["def solve(): print(int(input()))", "solve()"], [], [0, 1]),
        (["import sys\nsys.setrecursionlimit(9)\ndef solve(): print(sys.stdin.read())", "solve()"], [], [0, 1]),
        (["n = int(input())", "print(n * 2)"], [], [0, 1]),
        (["import sys", "print(sys.stdin.read())", "print(4)"], [], [0, 1]),
        (["print(open(0).read())", "x = [1, 2]\nprint(x)"], [], [0]),
        (["print(1)", "print(2)"], [], [1]),
        (["def f(): return 1\nprint(f())", "print(f())"], [], [0]),
        (["try: raw_input\nexcept NameError: raw_input = input\nprint(raw_input())", "print(1)"], [], [0]),
        (["x = 1", "y = 2"], [], [1]),
        (["print(input())", "def f(): pass"], [], [0]),
    ],
)
def test_blocks_are_joined_where_they_need_each_other(blocks, names, kept):
    text = "\n".join(f"Next:\n```python\n{block}\n```" for block in blocks)
    assert program_of(text, names) == "\n".join(f"{blocks[at]}\n" for at in kept)


def test_the_rest_of_a_function_keeps_its_indentation():
    body = "    return math.pi * r ** 2\n"
    for text in (body, f"```python\n{body}```", f"```\n{body}```"):
        assert program_of(text, ["area"], ["math"]) == body


def test_names_from_elsewhere_are_not_looked_for():
    text = "```python\ndef g(): pass\n```\n```python\ndef f(): return g()\n```"
    assert program_of(text, ["f"], ["g"]) == "def f(): return g()\n"
    assert program_of(text, ["f"]).startswith("def g")


@pytest.mark.parametrize("code", ["-" * 10**5, "a" + ".b" * 10**5, "(" * 10**5, "x = '\ud800'", "a\0b", "f(" * 10**4])
def test_what_is_hard_to_parse_is_an_answer_too(code):
    text = f"```python\n{code}\n```\n```python\n{code}\n```"
    assert program_of(text, ["f"]) == f"{code}\n"


def test_blocks_that_are_read_carelessly():
    text = "```python\nx\n```bash\ny\n```\nz"
    found = [(block.info, block.code) for block in blocks_of(text, careful=False)]
    assert found == [("python", "x\n"), ("bash", "y\n")]
