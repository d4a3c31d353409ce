"""Chat templates that are meant to do harm: crafted ones, and real ones with changes, each a function of a number."""

import random
import re

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}
{{ strftime_now('%d %b %Y') }}{{ system }}
{%- for message in messages %}{%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
{{- '<|start|>' + message['role'] + '<|end|>' + message['content'] | trim + '<|im_end|>' }}{%- else %}
{{ raise_exception('no tools') }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>' }}{%- endif %}"""
THINKING = """{%- set ns = namespace(last=messages|length - 1, seen=false) %}{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}{%- if not ns.seen and message.role == 'user' %}
{%- set ns.last = index %}{%- endif %}{%- endfor %}{% for message in messages %}{% if '</think>' in message.content %}
{%- set content = message.content.split('</think>')[-1].lstrip() %}{% else %}{% set content = message.content %}
{% endif %}{{ '<|im_start|>' + message.role + content + message | tojson + '<|im_end|>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""
REAL = (CHATML, LLAMA, THINKING)
LOOP = "{{% for a in range({0}) %}}{{% for b in range({0}) %}}{{% for c in range({0}) %}}{1}" + "{{% endfor %}}" * 3
CRAFTED = [
    *(LOOP.format(n, inner) for n in (100, 1000, 99999) for inner in ("", "x", "{{ a * b }}", "{{ messages }}")),
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}",
    *(
        "{{ " + body + " }}"
        for body in (
            "'a' * 10**10",
            "10**10**10",
            "'a' * messages|length * 10**9",
            "messages * 10**8",
            "[0] * 10**9",
            "'%99999999999s' % 'x'",
            "'{:>99999999999}'.format('x')",
            "'{0.__class__}'.format('x')",
            "''.__class__.__mro__[1].__subclasses__()",
            "7 ** 99999999",
            "lipsum(n=10**7)",
            "lipsum(n=99999)",
            "messages|tojson(indent=10**9)",
            "range(99999)|list|tojson",
            "'x'|center(10**10)",
            "'a'|indent(10**10)",
            "('a,' * 10**6).split(',')|batch(1)|list",
            "messages|pprint",
            "self",
            "self.__init__",
            "raise_exception",
            "raise_exception('\\x1b[2J\\u202e' * 9)",
            "raise_exception('a' * 10**7)",
            "raise_exception(messages)",
            "strftime_now('%Y' * 10**7)",
            "strftime_now(messages)",
            "strftime_now.__globals__",
            "strftime_now.__self__",
            "raise_exception.__globals__",
            "cycler.__init__",
            "joiner.__init__.__globals__",
            "namespace.__init__.__globals__",
            "lipsum.__globals__",
            "lipsum.__globals__['os'].popen('id')",
            "messages.append(1)",
            "messages.clear()",
            "messages[0].update(a=1)",
            "messages[0].pop('role')",
            "dict(a=1).__class__",
            "undefined",
            "undefined.a.b",
            "messages[99999]",
            "1/0",
            "1 % 0",
            "none + 1",
            "messages[0].content.encode('utf-7')",
            "'\\ud800'",
            "'\\x00'",
            "messages[0].content|replace('t', 'x' * 10**8)",
            "messages|map('length')|sum",
            "'a'|attr('__class__')",
            "{}|attr('__class__')",
            "messages|groupby('role')",
            "messages|map(attribute='__class__')|list",
            "''|format()|xmlattr",
            "'a'|wordwrap(0)",
            "caller()",
            "super()",
            "'a'.join(range(99999)|map('string')) * 9999",
            "(1).__add__",
            "(1).bit_length() * '9' ",
            "'((a+)+)+$'",
            "range(99999)|random",
            "(range(99999)|list * 99)|sort",
            "'a' * 2**28",
            "'\\U0001f600' * 2**26",
            "'9'*5000|int",
            "('9' * 99999)|int ** 9",
            "9**9**6",
            "-9**9**6 % 7",
        )
    ),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% do 1 %}",
    "{% set x = namespace(a=1) %}{% for i in range(99999) %}{% set x.a = x.a * 99999 %}{% endfor %}{{ x.a }}",
    "{% set x = namespace(a='a') %}{% for i in range(99) %}{% set x.a = x.a + x.a %}{% endfor %}{{ x.a }}",
    "{% set x = namespace(a=[]) %}{% for i in range(99) %}{% set x.a = [x.a, x.a] %}{% endfor %}{{ x.a }}",
    "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "{{ " + "1+" * 50_000 + "1 }}",
    "{{ " + "not " * 50_000 + "1 }}",
    "{{ [" * 5000,
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{#" * 50_000,
    "{{" * 50_000,
    "{% raw %}" * 20_000,
    "{% set x = " + "a." * 50_000 + "b %}",
    "{{ '" + "\\" * 99_999 + "' }}",
    "{{ " + "x|trim" + "|trim" * 20_000 + " }}",
    "-" * 250_000 + "{% -%}",
    "{% generation %}" * 1000 + "{% endgeneration %}" * 1000,
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for m in messages %}{{ loop.changed(loop) }}{% break %}{% endfor %}",
    "{% filter upper %}" * 500 + "{% endfilter %}" * 500,
    "{% call(x) f() %}{% endcall %}",
    "{% autoescape true %}{{ messages }}{% endautoescape %}",
    "{% trans %}{% endtrans %}",
    "{% debug %}",
    "",
    " ",
    "\x00",
    "\ud7ff",
    "<|im_end|>" * 10_000,
    "x" * 262_145,
    "{{ messages[0].content }}" * 10_000,
    "<|im_end|>{{ add_generation_prompt }}",
]
PIECES = (
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if add_generation_prompt %}",
    "{% else %}",
    "{% endif %}",
    "{{ m.content }}",
    "{{ messages }}",
    "{% set x = 'a' * 99999 %}",
    "{{ x * 99999 }}",
    "{% for i in range(99999) %}",
    "{{ loop.index }}",
    "{{ 9**99999 }}",
    "| tojson",
    "| trim * 99999",
    "{% macro f(x) %}",
    "{% endmacro %}",
    "{{ f(1) }}",
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "'",
    "(",
    ")",
    "[",
    "]",
    "**",
    "<|im_end|>",
    "<|im_start|>",
    "<think>",
    "\x00",
    "\u202e",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%c') }}",
    "{{ messages[0]['content'] * 9**9 }}",
    "{% break %}",
)
AROUND = (
    ("{% for i in range(9999) %}", "{% endfor %}"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}", "{% endfor %}{% endfor %}"),
    ("{% if messages[9].role %}", "{% endif %}"),
    ("{% set x %}", "{% endset %}{{ x * 9999 }}"),
    ("{% macro f(x) %}", "{{ f(x) }}{% endmacro %}{{ f(1) }}"),
    ("{% filter upper %}", "{% endfilter %}"),
    ("{% raw %}", "{% endraw %}"),
    ("{#", "#}"),
    ("{% for m in messages %}", "{{ m }}{% endfor %}"),
    ("{% generation %}", "{% endgeneration %}"),
)
EXPRESSIONS = (
    "messages * 99999",
    "messages | tojson * 99",
    "9 ** 99999",
    "none",
    "undefined.x",
    "namespace(a=1)",
    "range(99999) | list",
    "messages[0].content.__class__",
    "raise_exception(messages)",
    "strftime_now('%Y' * 99)",
    "'a' * 10 ** 9",
    "loop",
    "self",
    "messages | map(attribute='content') | join * 999",
    "(messages * 999) | sort(attribute='content') | list",
    "'<|im_end|>'",
)


def text_of(number: int, seed: str) -> str:
    """Returns the template of a number: the crafted ones first."""
    if number < len(CRAFTED):
        return CRAFTED[number]
    rng = random.Random(f"{seed}/template/{number}")
    text = rng.choice(REAL)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        text = (by_tags if rng.random() < 0.7 else by_characters)(rng, text)[:300_000]
    return text


def by_tags(rng: random.Random, text: str) -> str:
    """Returns a template in which whole tags are put in, doubled or repeated, so that it stays one."""
    parts = re.split(r"((?:\{%.*?%\})|(?:\{\{.*?\}\}))", text, flags=re.DOTALL)
    start, end = sorted(rng.randint(0, len(parts)) for _ in range(2))
    before, inner, after = ("".join(each) for each in (parts[:start], parts[start:end], parts[end:]))
    opened, closed = rng.choice(AROUND)
    at = rng.randrange(len(parts))
    expression = rng.choice(EXPRESSIONS)
    single = [
        *parts[:at],
        re.sub(r"[\w.]+(?=[^\w.]*\}\}$)", lambda _: expression, parts[at], count=1),
        *parts[at + 1 :],
    ]
    changes = [
        opened + text + closed,
        before + opened + inner + closed + after,
        before + opened + closed + inner + after,
        before + inner * 2 + after,
        before + "{{ " + expression + " }}" + inner + after,
        "".join(single),
        text.replace("messages", f"(messages * {10 ** rng.randint(1, 9)})", 1),
        text.replace("content", rng.choice(("content * 99999", "content | list | tojson", "contents", "content.x")), 1),
    ]
    return rng.choice(changes)


def by_characters(rng: random.Random, text: str) -> str:
    """Returns a template in which a slice is cut out, doubled, moved or repeated, or something put in."""
    start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
    before, inner, after = text[:start], text[start:end], text[end:]
    changes = [
        before + after,
        before + inner * 2 + after,
        before + after + inner,
        before + inner[:30] * rng.randint(2, 300) + after,
        before + rng.choice(PIECES) + inner + after,
        before + rng.choice(PIECES) + inner + rng.choice(PIECES) + after,
        before + str(rng.getrandbits(rng.choice((8, 64, 5000)))) + inner + after,
        before + chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) + after,
    ]
    return rng.choice(changes)
