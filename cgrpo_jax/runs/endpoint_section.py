"""The section of a configuration that says where a model answers which this program only asks."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.runs.keys import ALL, at_least_one, key, not_negative, one_of, positive, refused


def _url(name: str, value: str) -> str | None:
    return refused(chat_protocol.check_secrets, value, owner=name.partition(".")[0])


def _extra_body(name: str, value: str) -> str | None:
    text = refused(chat_protocol.extra_body, value)
    return text and f"{name} {text}"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint."""

    url: str = key(
        "",
        "such as http://host:8000/v1, of its query what is secret as a variable, ?key=$NAME; empty: none",
        _url,
        may_change=ALL,
        because="where its model answers",
    )
    model: str = key("", "its name there")
    key_variable: str = key(
        "",
        "environment variable with the API key; empty: none is sent",
        may_change=ALL,
        because="what it is paid with",
    )
    concurrency: int = key(
        16, "requests at a time", at_least_one, may_change=ALL, because="how much it is asked at a time"
    )
    timeout: float = key(
        60.0,
        "seconds an attempt",
        positive("leaves no time", "60.0"),
        may_change=ALL,
        because="how long an answer may take",
    )
    max_attempts: int = key(
        4, "at having a reply", at_least_one, may_change=ALL, because="how often it is asked for the same"
    )
    max_requests: int = key(
        0,
        "until the run ends or is resumed; 0: no limit",
        not_negative,
        may_change=ALL,
        because="what it may be asked until the run ends or is resumed",
    )
    max_tokens: int = key(
        0, "likewise, in sampled tokens", not_negative, may_change=ALL, because="likewise, in sampled tokens"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = key(
        "max_tokens",
        "what it calls the longest reply: max_tokens, max_completion_tokens",
        one_of(*chat_protocol.MAX_TOKENS_FIELDS),
        may_change=ALL,
        because="how the same is said",
    )
    send_temperature: bool = key(True, "temperature and top_p are sent; False: its own, where it refuses them")
    extra_body: str = key(
        "", 'further fields of a request as JSON, such as \'{"reasoning_effort": "low"}\'; empty: none', _extra_body
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.url and not self.model:
            yield f"{name}.model is empty; give the name that the endpoint knows its model by."
