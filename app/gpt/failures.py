"""What went wrong with a call, in words that hold no key, prompt or answer, and what follows from it.

    outcome              error              when
    refusal              Permanent          the model declined
    truncated            Permanent          the answer was cut at the length limit
    content_filter       Permanent          the server's filter stopped prompt or answer
    invalid_json         BadAnswer          the server's own JSON mode gave up (Groq)
    credit               Halted(credit)     nothing left to pay with
    key_refused          Halted(key)        401, 403
    model_unknown        Halted(model)      404
    rate_limited         RateLimited        429
    timeout              Transient          the total deadline was over
    server_error         Transient          5xx, or an answer that is none
    unreachable          Transient          no connection, or a broken one
    schema_unsupported   Transient          nothing was asked: ask again at once, it is done without the schema now
    rejected             Permanent          any other 4xx

Sources: OpenAI's guide "Error codes"; the error objects of Groq, vLLM, Ollama and Azure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.errors import BadAnswer, Halted, NotReady, Permanent, RateLimited, TobanError, Transient
from app.gpt.pace import Limits, limits_of

Outcome = Literal[
    "refusal",
    "truncated",
    "content_filter",
    "invalid_json",
    "credit",
    "key_refused",
    "model_unknown",
    "rate_limited",
    "timeout",
    "server_error",
    "unreachable",
    "schema_unsupported",
    "rejected",
]

_CREDIT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
    "credits_exhausted",
}
_NO_MODEL = {"model_not_found", "model_decommissioned", "model_not_active", "model_terms_required"}
_FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}
_TOO_LONG = re.compile(r"context[_ ](length|window)|maximum context|too long|too large|max_model_len", re.IGNORECASE)
_SCHEMA = re.compile(
    r"response[_ ]?format|json[_ ]?schema|json[_ ]?object|json[_ ]mode|structured[_ ]output|guided|grammar",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_WORD = re.compile(r"[a-z0-9]{3,}")
# Words of the protocol, and small ones, that a server's message and a prompt may share without telling anything.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the and for not but you are has have must may can with this that from into than only one all any its was "
        "model models request requests response format json schema object message messages prompt content value "
        "values token tokens maximum minimum length type string number field name",
    )
)


@dataclass(frozen=True)
class Usage:
    """Tokens that were counted; `cached` are a part of `prompt`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


class CallFailed(Exception):
    """A call that brought no answer.

    `error`: what the task ends with. `billed`: whether it cost something; None: possibly. `usage`: what the server
    counted, if it said so. `limits`: for the limiter. `seconds`: how long it took.
    """

    def __init__(
        self,
        outcome: Outcome,
        error: TobanError,
        *,
        billed: bool | None,
        usage: Usage | None = None,
        limits: Limits | None = None,
        seconds: float = 0.0,
    ) -> None:
        super().__init__(f"{outcome}: {error}")
        self.outcome = outcome
        self.error = error
        self.billed = billed
        self.usage = usage
        self.limits = limits or Limits()
        self.seconds = seconds


@dataclass(frozen=True)
class Refused:
    """An answer that is an error. `words`: the server's message. Any of it may hold what nobody may read."""

    status: int
    code: str = field(default="", repr=False)
    param: str = field(default="", repr=False)
    type: str = field(default="", repr=False)
    words: str = field(default="", repr=False)

    @classmethod
    def read(cls, status: int, body: object) -> "Refused":
        """From the body `{"error": {"message", "type", "param", "code"}}`, or whatever else was sent."""
        error = body.get("error", body) if isinstance(body, Mapping) else body
        if not isinstance(error, Mapping):
            return cls(status, words=error if isinstance(error, str) else "")
        inner = error.get("innererror")  # Azure's
        codes = [error.get("code"), inner.get("code") if isinstance(inner, Mapping) else None]
        words = error.get("message") or error.get("detail") or ""
        return cls(
            status,
            code=next((code for code in map(_name, codes) if code and not code.isdigit()), ""),
            param=_name(error.get("param")),
            type=_name(error.get("type")),
            words=words if isinstance(words, str) else str(words),
        )

    def knows_no_schema(self, level: int) -> bool:
        """Whether the server can't do a `response_format` of this level (2 json_schema, 1 json_object)."""
        if level == 0 or self.status not in {400, 404, 415, 422, 500, 501}:
            return False
        # OpenAI wants the word json among the messages, and names them, when it is asked for a json_object.
        if self.param and level == 2 and not self.param.startswith("response_format"):
            return False
        return bool(_SCHEMA.search(f"{self.param} {self.words}"))


def refused(
    answer: Refused,
    host: str,
    model: str,
    *,
    headers: Mapping[str, str],
    secret: str,
    private: Iterable[str],
    level: int = 0,
) -> CallFailed:
    """The failure that an error answer is.

    `model`: "" where none was asked, but a file or a batch. `secret` and `private`: the key and the messages, which
    must not be repeated. `level`: of the `response_format`.
    """
    limits = limits_of(headers, refused=answer.status == 429)
    said = f"{host} answered {answer.status} {answer.code or answer.type}".rstrip()
    named = f"{said} ({answer.param})" if answer.param else said
    if _holds_key(named, secret):
        said = named = f"{host} answered {answer.status}"
    outcome: Outcome
    match _kind(answer, model, level):
        case "credit":
            # No pause of the limiter: it is the queue that has to wait.
            outcome, limits = "credit", Limits()
            error: TobanError = Halted(f"{said}: the credit is used up; add some there", "credit")
        case "model_unknown" as outcome:
            reason = f"{said}: it has no model {model} for this key; correct OPENAI_MODEL or OPENAI_BASE_URL"
            error = Halted(reason, "model")
        case "key_refused" as outcome:
            what = "the key" if answer.status == 401 else "this key, its project or this place"
            error = Halted(f"{said}: it does not accept {what}; correct OPENAI_API_KEY", "key")
        case "content_filter" as outcome:
            error = Permanent(f"{said}: its content filter stopped the prompt; change it")
        case "invalid_json" as outcome:
            error = BadAnswer(f"{said}: the model wrote no valid JSON")
        case "schema_unsupported" as outcome:
            what = "JSON schema" if level == 2 else "JSON object"
            error = Transient(f"{named}: it knows no {what}; it is asked without from now on")
        case "rate_limited" as outcome:
            error = RateLimited(f"{said}: too many requests", retry_after=limits.pause)
        case "server_error" as outcome:
            error = Transient(named)
        case outcome:
            error = _rejected(answer, named, model, harmless(answer.words, secret, private))
    # A gateway that gave up may have left a model at work.
    unsure = outcome == "invalid_json" or answer.status in {502, 504, 524}
    return CallFailed(outcome, error, billed=None if unsure else False, limits=limits)


def _kind(answer: Refused, model: str, level: int) -> Outcome:
    status, known = answer.status, {answer.code.lower(), answer.type.lower()}
    reasons: dict[Outcome, bool] = {  # the first that holds
        "credit": status == 402 or bool(known & _CREDIT),
        "model_unknown": (status == 404 and bool(model)) or bool(known & _NO_MODEL),
        "content_filter": bool(known & _FILTERED),
        "key_refused": status in {401, 403},
        "invalid_json": "json_validate_failed" in known,
        "schema_unsupported": answer.knows_no_schema(level),
        "rate_limited": status == 429,
        "server_error": status >= 500 or status in {408, 409, 425},
    }
    return next((outcome for outcome, holds in reasons.items() if holds), "rejected")


def _rejected(answer: Refused, named: str, model: str, words: str) -> TobanError:
    if answer.status < 400:
        return NotReady(f"{named}, and not with what was asked for; correct OPENAI_BASE_URL")
    if answer.status == 413 or _TOO_LONG.search(f"{answer.code} {answer.words}"):
        return Permanent(f"{named}: the prompt is too long for {model}; shorten it")
    return Permanent(f"{named}: {words}" if words else named)


def harmless(words: str, secret: str, private: Iterable[str]) -> str:
    """A server's own words, if they are plain and hold no part of the key and no word of the messages; else ""."""
    text = " ".join(words.split())
    if not 0 < len(text) <= 300 or not text.isascii() or "\\" in text or "sk-" in text:
        return ""
    if _holds_key(text, secret):
        return ""
    spoken = set(_WORD.findall(text.lower())) - _COMMON
    if any(spoken & set(_WORD.findall(message.lower())) for message in private):
        return ""
    return text


def _holds_key(text: str, secret: str) -> bool:
    """Whether a part of the key, which servers repeat in their errors, is in a text."""
    return bool(secret) and any(secret[start : start + 6] in text for start in range(max(len(secret) - 5, 1)))


def _name(value: object) -> str:
    text = str(value) if isinstance(value, str | int) else ""
    return text if _NAME.fullmatch(text) else ""
