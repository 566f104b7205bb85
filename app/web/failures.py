"""What goes wrong becomes a clear page, or JSON for programs; never a traceback."""

from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Permanent, Refused, Transient
from app.web.api.problems import OLD_CONTRACT, PATHS, Problem, phrase
from app.web.api.problems import invalid as invalid_values
from app.web.auth import SignInNeeded
from app.web.i18n import mark, t
from app.web.reader import reader
from app.web.render import redirect, render

log = structlog.get_logger("toban.web")

RETRY_AFTER = 5  # s
TITLES = {
    400: mark("This can't be done"),
    403: mark("Not allowed"),
    404: mark("Not found"),
    405: mark("Not allowed"),
    413: mark("Too much"),
    422: mark("This can't be done"),
    429: mark("Too often"),
    500: mark("Something went wrong"),
    503: mark("One moment, please"),
}


def wants_page(request: Request) -> bool:
    """Whether a person asks, by a browser."""
    return "text/html" in request.headers.get("accept", "") and not reader().path.startswith(PATHS)


def failure(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A page that says what is wrong, or for programs a problem."""
    if reader().path.startswith(OLD_CONTRACT):
        return JSONResponse({"error": message}, status, headers)
    if not wants_page(request):
        return Problem(status, phrase(status), message, headers=headers).response()
    title = t(TITLES.get(status, TITLES[500 if status >= 500 else 400]))
    # Who asked has been found out already, or can't be now.
    response = render(
        request,
        "failure.html",
        status=status,
        known=hasattr(request.state, "user") and status < 500,
        title=title,
        message=message,
        retry=RETRY_AFTER if status == 503 else None,
    )
    response.headers.update(headers or {})
    return response


def away(request: Request, error: Exception) -> Response:
    log.warning("web.database_away", reason=str(error))
    words = (
        t("The database does not answer at the moment. This page tries again by itself.")
        if wants_page(request)
        else t("The database does not answer at the moment. Try again in {n} s.", n=RETRY_AFTER)
    )
    return failure(request, 503, words, {"Retry-After": str(RETRY_AFTER)})


def refused(request: Request, error: Exception) -> Response:
    """The database says, in words for people, what does not fit."""
    missing = isinstance(error, Refused) and error.missing
    return failure(request, 404 if missing else 400, str(error))


def broken(request: Request, error: Exception) -> Response:
    """What only the one who runs it can mend; the log says what."""
    log.error("web.error", reason=str(error), exc_info=error)
    return failure(request, 500, t("It has been logged; whoever runs Toban can look it up."))


def sign_in(request: Request, _: Exception) -> Response:
    if wants_page(request):
        wanted = reader().path if request.method == "GET" and reader().path != "/" else None
        return redirect("/sign-in", next=wanted)
    words = t("Sign in, or send an API key as `Authorization: Bearer …` or `X-API-Key: …`.")
    return failure(request, 401, words, {"WWW-Authenticate": "Bearer"})


def problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - what it is registered for
    return failure(request, error.status, error.detail, error.headers) if wants_page(request) else error.response()


def http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    if wants_page(request):
        words = {404: t("There is no such page."), 405: t("This page does not take such requests.")}
    else:
        words = {404: t("There is nothing at this path."), 405: t("This path does not take this method.")}
    standard = error.detail in {"Not Found", "Method Not Allowed"}
    message = words.get(error.status_code, error.detail) if standard else error.detail
    headers = {"Allow": ", ".join(sorted(_methods(request)))} if error.status_code == 405 else error.headers
    return failure(request, error.status_code, message, headers)


def _methods(request: Request) -> set[str]:
    """What the path takes, by all of its routes; each alone knows its own methods only."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    found: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.path and route.methods and compile_path(route.path)[0].match(path):
            found |= route.methods
    return found


def invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    if not wants_page(request):
        return unreadable(request, error).response()
    names = sorted({str(detail["loc"][-1]) for detail in error.errors() if detail["loc"]})
    return failure(request, 422, t("These values are missing or can't be read: {names}", names=", ".join(names)))


def unreadable(request: Request, error: RequestValidationError) -> Problem:
    found = error.errors()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if any(tuple(detail["loc"]) == ("body",) for detail in found) and kind not in {"", "application/json"}:
        words = "send JSON, with `Content-Type: application/json`"
        return Problem(415, phrase(415), words, headers={"Accept": "application/json"})
    return invalid_values(found)


class Calm:
    """Whatever else is raised is logged and answered; it never reaches the server's own error page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return
        except Exception as error:
            if scope["type"] != "http" or begun:
                log.exception("web.error", path=scope.get("path"))
                return
            await broken(Request(scope, receive), error)(scope, receive, send)


def install(app: FastAPI) -> None:
    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(Transient, away)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(Permanent, broken)
    app.add_exception_handler(SignInNeeded, sign_in)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
