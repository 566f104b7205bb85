"""What goes wrong in the HTTP API: `application/problem+json`.

    raise Problem(503, "Paused", "the job analysis is paused", code="paused", headers={"Retry-After": "60"})

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.web.i18n import mark, t

MEDIA_TYPE = "application/problem+json"
# What answers in JSON whatever the `Accept` header says; a test compares it with the OpenAPI document.
PATHS = (
    "/analyses/",
    "/analyze-timeblock",
    "/api/",
    "/badge.json",
    "/batches",
    "/fetch-and-transcribe",
    "/health/",
    "/metrics",
    "/openapi.json",
    "/wake/",
)
# `{"error": …}`, as the old one answered.
OLD_CONTRACT = "/api/monitor/"


class Invalid(BaseModel):
    """A value that is missing or can't be used."""

    field: str = Field(examples=["time_block"])
    message: str = Field(examples=["write it as HH-00 or HH-30, such as 12-30"])


class ProblemDetails(BaseModel):
    """What went wrong, after RFC 9457."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str = Field("about:blank", description="`about:blank`: `status` and `code` say it all")
    title: str = Field(description="what kind of problem it is")
    status: int = Field(ge=400, le=599, description="the HTTP status")
    detail: str = Field(description="what is wrong and what to do, for people")
    code: str | None = Field(
        None, description="the same in one word, for programs; where there are several of a status"
    )
    errors: list[Invalid] | None = Field(None, description="with 422: which values are wrong")


class Problem(Exception):
    """Ends a request of the API with a problem of this status; `extensions`: further members, such as `code`."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,  # noqa: ANN401 - JSON
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions

    def response(self) -> JSONResponse:
        body = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        return JSONResponse({**body, **self.extensions}, self.status, self.headers, media_type=MEDIA_TYPE)


# As RFC 9110 has them; Python's depend on its version.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    """The status's own words."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem that validation errors of pydantic are; what was sent is not repeated."""
    found = [{"field": _field(error), "message": _message(error)} for error in errors]
    detail = "; ".join(f"{one['field']}: {one['message']}" for one in found[:5])
    return Problem(422, phrase(422), detail, code="invalid", errors=found)


def _field(error: Mapping[str, Any]) -> str:
    """`body.date` is `date`: a request has no two values of one name."""
    names = [str(part) for part in error["loc"]]
    return names[0] if len(names) == 1 or error["type"] == "json_invalid" else ".".join(names[1:])


# What pydantic's kinds of errors mean to whoever asks; `{…}` stand in the error's context, where the words of our own
# checks stand too. Any other kind has pydantic's words.
_WORDS: Mapping[str, str] = {
    "bool_parsing": mark("write true or false"),
    "bool_type": mark("write true or false"),
    "finite_number": mark("write a number"),
    "float_parsing": mark("write a number"),
    "float_type": mark("write a number"),
    "greater_than_equal": mark("write {ge:g} or more"),
    "int_from_float": mark("write a whole number"),
    "int_parsing": mark("write a whole number"),
    "int_type": mark("write a whole number"),
    "json_invalid": mark("this is no JSON: {error}"),
    "less_than_equal": mark("write {le:g} or less"),
    "list_type": mark("send a list"),
    "missing": mark("is missing"),
    "model_attributes_type": mark("send an object of JSON, with its fields by name"),
    "string_pattern_mismatch": mark("holds a character that is not taken"),
    "string_too_long": mark("write at most {max_length} characters"),
    "string_too_short": mark("is empty"),
    "string_type": mark("write text, in quotes"),
    "value_error": "{error}",
}


def _message(error: Mapping[str, Any]) -> str:
    words = _WORDS.get(error["type"])
    return t(words, **error.get("ctx", {})) if words else str(error["msg"])


# --- the OpenAPI document ---------------------------------------------------------------------------------------------

_EXAMPLES: Mapping[int, str] = {
    400: "the request can't be read",
    401: "send an API key as `Authorization: Bearer …` or `X-API-Key: …`",
    403: "this API key does not have the scope analyze",
    404: "there is no such thing",
    409: "another request has taken its place",
    413: "at most 1048576 bytes are taken",
    415: "send JSON, with `Content-Type: application/json`",
    422: "date: write it as YYYY-MM-DD",
    429: "too many requests from this address",
    500: "it has been logged; whoever runs Toban can look it up",
    502: "the model's answer can't be used",
    503: "the database does not answer at the moment",
}
# What any operation may answer.
COMMON = (401, 403, 429, 500, 503)


def errors(*statuses: int, common: Sequence[int] = COMMON, **details: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: its problems, and those of every route; `details`: examples by code, as `paused="…"`."""
    return {
        status: {
            "description": phrase(status),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": {
                        "type": "about:blank",
                        "title": phrase(status),
                        "status": status,
                        "detail": details.get(f"_{status}", _EXAMPLES.get(status, phrase(status))),
                    },
                }
            },
        }
        for status in sorted({*statuses, *common})
    }
