"""Whether pages of other origins may use the HTTP API: those of CORS_ORIGINS, with a key, and never with a session.

Source: WHATWG Fetch, section 3.3, "HTTP CORS protocol".
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.web.api.problems import PATHS
from app.web.reader import reader

_SENT = ["Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"]
_SHOWN = ["Content-Location", "Location", "Preference-Applied", "Retry-After"]


class Cors:
    """CORS on the API's paths; the pages answer as if there were none."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        self.app = app
        self.cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_SENT,
            expose_headers=_SHOWN,
            allow_credentials=False,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and reader().path.startswith(PATHS)
        await (self.cors if wanted else self.app)(scope, receive, send)
