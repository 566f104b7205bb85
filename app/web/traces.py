"""Each request as a step of a trace, named by its route: no path, no query, no person."""

from opentelemetry.trace import Span, SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing

# Asked often, or open for hours, and of no interest to anybody.
UNTRACED = ("/static/", "/health/", "/events", "/metrics", "/badge.")


class Traced:
    """Goes on with the trace of a caller who shows a key or a token; anybody else's begins one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")).startswith(UNTRACED):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = "authorization" in headers or "x-api-key" in headers
        method = scope["method"] if scope["method"] in METHODS else "HTTP"

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                _answered(span, method, scope, message["status"])
                if b"text/event-stream" in dict(message["headers"]).get(b"content-type", b""):
                    span.end()  # what follows may take hours
            await send(message)

        with tracing.span(
            method,
            {"http.request.method": method},
            kind=SpanKind.SERVER,
            parent=headers.get("traceparent") if known else None,
        ) as span:
            await self.app(scope, receive, watched)


METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _answered(span: Span, method: str, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        tracing.fail(span, str(status))
