"""What goes wrong in the HTTP API: `application/problem+json`.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


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


def errors(*statuses: int, common: Sequence[int] = (), **details: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: its problems; `details`: what they say, as `_404="there is no such source"`."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *common}):
        phrase = HTTPStatus(status).phrase
        example = {"title": phrase, "status": status, "detail": details.get(f"_{status}", phrase)}
        found[status] = {"description": phrase, "content": {MEDIA_TYPE: {"example": example}}}
    return found
