"""The chat template of a model folder: where it is, and how it is rendered.

Templates are code from elsewhere, so they run in Jinja's sandbox.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime.json_files import fetch_again, shown

# What a faulty template may raise: its own refusal, or what the Python expressions in it raise.
FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# Given to every template, so no argument's name.
_GIVEN = ("messages", "add_generation_prompt")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template that can be rendered.

    Attributes:
      compiled: renders it.
      source: as it was written.
      reads: names of the variables that it reads.
    """

    compiled: jinja2.Template
    source: str
    reads: frozenset[str]


def compile_template(source: str, folder: pathlib.Path, now: datetime.datetime) -> ChatTemplate:
    """Compiles a template.

    Args:
      source: in Jinja.
      folder: of the model, for messages.
      now: what it takes for the time.

    Raises:
      UserError: it is not valid Jinja.
    """

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    try:
        reads = jinja2.meta.find_undeclared_variables(environment.parse(source))
        compiled = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"The chat template of {folder} is not valid Jinja: line {error.lineno}: {error}.") from None
    return ChatTemplate(compiled, source, frozenset(reads - environment.globals.keys()))


def check_arguments(
    template: ChatTemplate | None, arguments: Mapping[str, Any], given: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Checks that a template reads the arguments that are meant for it.

    Args:
      template: None for a folder without one.
      arguments: by name.
      given: what every template of this folder is given besides.
      folder: of the model, for messages.

    Raises:
      UserError: one of them changes nothing.
    """
    known = frozenset() if template is None else template.reads
    unread = sorted(name for name in arguments if name not in known or name in _GIVEN)
    if unread:
        others = ", ".join(sorted(known - set(_GIVEN) - given.keys())) or "none"
        raise UserError(
            f"template argument {unread[0]!r} changes nothing: the chat template of {folder} does not read it; the "
            f"arguments that it reads: {others}. Correct the name, or leave it out."
        )


def rendered_probes(render: Callable[[Sequence[Mapping[str, str]], bool], str]) -> list[str]:
    """Returns what a template makes of turns of each role, those apart that it refuses.

    Args:
      render: `(messages, add_generation_prompt) -> text`.
    """
    system, user, said = ({"role": role, "content": "two"} for role in ("system", "user", "assistant"))
    rendered = []
    for messages in ([user], [user, said], [user, said, user], [system, user]):
        for add_generation_prompt in (True, False):
            with contextlib.suppress(*FAULTS):
                rendered.append(render(messages, add_generation_prompt))
    return rendered


def template_source(folder: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
    """Returns the template of a folder, None if it has none.

    Args:
      folder: of the model.
      settings: its `tokenizer_config.json`.

    Raises:
      UserError: it can't be read.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read as UTF-8 text ({error}); {fetch_again(path)}.") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones, for tools and the like
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {shown(template)}; it must be a text.")
    return template


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what a model says; for rendering it is only its content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML, which models never saw.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
