"""What a model has to answer: the verdict on a time block, its JSON schema, and a parser that trusts nothing."""

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from app.errors import BadAnswer

LOWEST, HIGHEST = -100, 100
_TEXT = 4_000  # characters kept of summary and behavior
_ANSWER = 64 * 1024  # characters of an answer that are looked at
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)  # reasoning models behind vLLM and Ollama
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_UNSTORABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # PostgreSQL refuses NUL and surrogates

# Only what OpenAI's strict mode takes everywhere; bounds of numbers are not, so the description has them.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "description": "What happened, in one to three sentences."},
        "vibe_score": {
            "type": "number",
            "description": f"The mood as a number from {LOWEST} (very bad) over 0 (neutral) to {HIGHEST} (very good).",
        },
        "behavior": {"type": "string", "description": "What the people do, in a few words."},
    },
    "required": ["summary", "vibe_score", "behavior"],
    "additionalProperties": False,
}


class Verdict(BaseModel):
    """A time block, judged. `vibe_score`: the mood, -100 … 100."""

    model_config = {"frozen": True, "strict": True}

    summary: str = Field(repr=False)
    vibe_score: float = Field(ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    behavior: str = Field(repr=False)

    @field_validator("summary", "behavior")
    @classmethod
    def _storable(cls, text: str) -> str:
        clean = _UNSTORABLE.sub("", text).strip()
        return clean if len(clean) <= _TEXT else clean[: _TEXT - 1] + "…"


class BadVerdict(BadAnswer):
    """An answer that is no verdict. The message may be sent back to the model; it holds none of the answer's words."""

    def __init__(self, message: str, outcome: Literal["invalid_json", "out_of_range"]) -> None:
        super().__init__(message)
        self.outcome = outcome


def parse(text: str) -> Verdict:
    """The verdict of a model's answer: one JSON object, also inside a code fence or after some words.

    Raises `BadVerdict`: `out_of_range` where only the score is not a number from -100 to 100 (Python's `json` takes
    NaN and Infinity), else `invalid_json`.
    """
    if len(text) > _ANSWER:
        raise BadVerdict(f"the answer has {len(text)} characters, more than {_ANSWER}", "invalid_json")
    try:
        answer = json.loads(_json_of(text), parse_int=float)  # an endless integer is out of range, and no error
    except json.JSONDecodeError as error:
        reason = f"the answer is not valid JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError):
        reason = "the answer is not valid JSON"
    else:
        return _checked(answer)
    raise BadVerdict(f"{reason}; answer with one JSON object and nothing else", "invalid_json")


def _json_of(text: str) -> str:
    text = _THOUGHTS.sub("", text)
    if fenced := _FENCED.search(text):
        text = fenced[1]
    text = text.strip().removeprefix("\ufeff")
    if not text.startswith(("{", "[")):
        start, end = text.find("{"), text.rfind("}")
        if 0 <= start < end:
            return text[start : end + 1]
    return text


def _checked(answer: object) -> Verdict:
    try:
        return Verdict.model_validate(answer)
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False, include_context=False)
    reasons = []
    for one in wrong:
        field = str(one["loc"][0]) if one["loc"] else "the answer"
        if one["type"] in {"greater_than_equal", "less_than_equal", "finite_number"}:
            reasons.append(f"{field} is not a number from {LOWEST} to {HIGHEST}")
        elif one["type"] == "missing":
            reasons.append(f"{field} is missing")
        else:
            kind = {"vibe_score": "a number", "the answer": "a JSON object"}.get(field, "a string")
            reasons.append(f"{field} is not {kind}")
    in_range = any(not reason.endswith(f"to {HIGHEST}") for reason in reasons)
    raise BadVerdict("; ".join(reasons), "invalid_json" if in_range else "out_of_range")
