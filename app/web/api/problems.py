"""What goes wrong in the HTTP API: `application/problem+json`.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

MEDIA_TYPE = "application/problem+json"
PATHS = ("/fetch-and-transcribe", "/batches")


class ProblemDetails(BaseModel):
    """What went wrong, after RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


class Problem(Exception):
    """Ends a request with a problem; `extensions`: further members of its body."""

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


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem that pydantic's errors are; what was sent is not repeated."""
    found = [
        {"field": str(error["loc"][-1]), "message": str(error["msg"]).removeprefix("Value error, ")} for error in errors
    ]
    detail = "; ".join(f"{one['field']}: {one['message']}" for one in found[:5])
    return Problem(422, phrase(422), detail, code="invalid", errors=found)


def errors(*statuses: int, **_details: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the problems that it may answer with."""
    return {
        status: {
            "description": phrase(status),
            "content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}},
        }
        for status in sorted({*statuses, 401, 403, 429, 500, 503})
    }


def install(app: FastAPI) -> None:
    def answered(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - what it is registered for
        return error.response()

    app.add_exception_handler(Problem, answered)
