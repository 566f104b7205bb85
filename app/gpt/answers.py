"""A chat completion as it is asked for and as it is answered: the same for one call and for a line of a batch.

Source: OpenAI's API reference, "Create chat completion" and "Structured outputs".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from app.errors import Permanent, Transient
from app.gpt.failures import CallFailed, Refused, Usage, refused
from app.gpt.pace import Limits

SCHEMA_LEVEL, OBJECT_LEVEL, PLAIN_LEVEL = 2, 1, 0  # of response_format: json_schema, json_object, none
_MODEL = re.compile(r"[\w./:@+-]{1,100}", re.ASCII)


class Message(TypedDict):
    """`role`: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Completion:
    """An answer. `model`: as the server names it. `usage`: None where the server counts nothing."""

    text: str = field(repr=False)
    model: str
    usage: Usage | None
    seconds: float = 0.0
    limits: Limits = field(default_factory=Limits)
    request_id: str = ""


def request_body(
    messages: Sequence[Message], model: str, schema: Mapping[str, Any], level: int = SCHEMA_LEVEL
) -> dict[str, Any]:
    """The body of `POST /v1/chat/completions`; below the schema's level the messages say what to answer."""
    body: dict[str, Any] = {"model": model, "messages": list(messages)}
    if level == SCHEMA_LEVEL:
        wanted = {"name": "verdict", "strict": True, "schema": schema}
        return body | {"response_format": {"type": "json_schema", "json_schema": wanted}}
    words = "Answer with one JSON object, and nothing else, that satisfies this JSON schema: "
    body["messages"] = [{"role": "system", "content": words + json.dumps(schema)}, *messages]
    return body | ({"response_format": {"type": "json_object"}} if level == OBJECT_LEVEL else {})


def completion_of(body: object, host: str, model: str, *, secret: str = "", private: Sequence[str] = ()) -> Completion:
    """The answer in the body of a 200, without its time and limits. Raises `CallFailed` where it is none."""
    if not isinstance(body, Mapping):
        raise CallFailed("server_error", Transient(f"{host} answered something else than JSON"), billed=None)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        if error := body.get("error"):  # a router that answers 200 for a model's failure
            status = error.get("code") if isinstance(error, Mapping) else None
            answer = Refused.read(status if isinstance(status, int) and 400 <= status < 600 else 502, body)
            raise refused(answer, host, model, headers={}, secret=secret, private=private)
        raise CallFailed("server_error", Transient(f"{host} answered without any choice"), billed=None)
    usage = usage_of(body.get("usage"))
    if message.get("refusal"):
        raise CallFailed("refusal", Permanent(f"{model} refused the prompt; change it"), billed=True, usage=usage)
    if choice.get("finish_reason") == "content_filter":
        reason = f"the content filter of {host} stopped the answer; change the prompt"
        raise CallFailed("content_filter", Permanent(reason), billed=True, usage=usage)
    if choice.get("finish_reason") == "length":
        reason = (
            f"the answer of {model} was cut at its length limit; shorten the prompt, or choose another OPENAI_MODEL"
        )
        raise CallFailed("truncated", Permanent(reason), billed=True, usage=usage)
    named = body.get("model")
    if not isinstance(named, str) or not _MODEL.fullmatch(named):
        named = model
    return Completion(_text(message.get("content")), named, usage)


def usage_of(usage: object) -> Usage | None:
    """Tokens in an answer's `usage`."""
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    return Usage(
        _tokens(usage.get("prompt_tokens")),
        _tokens(details.get("cached_tokens")) if isinstance(details, Mapping) else 0,
        _tokens(usage.get("completion_tokens")),
    )


def _tokens(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(content: object) -> str:
    """The text, also of a server that sends it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
