"""The chat template of a model folder: where it is, and how it is rendered.

Templates are programs from elsewhere, so they run in Jinja's sandbox, and that in a process of its own with limits of
time and memory (`folder_process`): a loop in a sandbox is a loop all the same.
"""

import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.folder_process import PROCESS, FaultError, LimitError
from cgrpo_jax.runtime import reading
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.runtime.json_files import fetch_again, shown

# Given to every template, so no argument's name.
_GIVEN = ("messages", "add_generation_prompt")
# Of a template: characters, and seconds of processor time. The longest known has 30,000 characters and takes 0.05 s to
# compile; a conversation takes well under a millisecond.
_LONGEST, _COMPILING, _RENDERING = 1 << 18, 2.0, 1.0
# Likewise of a conversation of a few words, with which it is tried; and the characters that it may add to contents.
_TRYING, _ADDED, _ADDED_TRYING = 0.25, 1 << 17, 1 << 15


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template that can be rendered.

    Attributes:
      source: as it was written.
      reads: names of the variables that it reads.
      folder: of the model, for messages.
      now: what it takes for the time, as ISO 8601.
    """

    source: str
    reads: frozenset[str]
    folder: pathlib.Path
    now: str

    def render(
        self,
        variables: Mapping[str, Any],
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        *,
        trying: bool = False,
    ) -> str:
        """Returns what it makes of messages.

        Args:
          variables: what else it is given.
          messages: the conversation.
          add_generation_prompt: whether the words that open the assistant's turn are wanted.
          trying: the conversation is of a few words.

        Raises:
          FaultError: it refuses the messages, or fails at them.
          UserError: it comes to a limit.
        """
        given = sum(len(text) for message in messages for text in message.values() if isinstance(text, str))
        most = 4 * given + (_ADDED_TRYING if trying else _ADDED)
        arguments = (dict(variables), [dict(one) for one in messages], add_generation_prompt, most)
        try:
            seconds = _TRYING if trying else _RENDERING
            return PROCESS.ask("render", self.source, self.now, *arguments, seconds=seconds)
        except LimitError as error:
            raise _limited(self.folder, error) from None


def compile_template(source: str, folder: pathlib.Path, now: datetime.datetime) -> ChatTemplate:
    """Compiles a template.

    Args:
      source: in Jinja.
      folder: of the model, for messages.
      now: what it takes for the time.

    Raises:
      UserError: it is not valid Jinja, or comes to a limit.
    """
    if len(source) > _LONGEST:
        raise UserError(
            f"The chat template of {folder} has {len(source):,} characters, and no template has more than "
            f"{_LONGEST:,}; fetch it again."
        )
    try:
        reads = PROCESS.ask("compile", source, now.isoformat(), seconds=_COMPILING)
    except FaultError as error:
        raise UserError(f"The chat template of {folder} is not valid Jinja: {shown_fault(error)}.") from None
    except LimitError as error:
        raise _limited(folder, error) from None
    return ChatTemplate(source, frozenset(reads), folder, now.isoformat())


def shown_fault(error: FaultError) -> str:
    """Returns what a template's fault says, for a line that people read."""
    return text_lib.one_line(str(error))


def _limited(folder: pathlib.Path, error: LimitError) -> UserError:
    return UserError(
        f"The chat template of {folder} {error}; it is no template for conversations, so take that of the instruct "
        "model of the same family."
    )


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
            with contextlib.suppress(FaultError):
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
            return reading.read_bytes(path, most=4 * _LONGEST).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read as UTF-8 text ({error}); {fetch_again(path)}.") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones, for tools and the like
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {shown(template)}; it must be a text.")
    return template
