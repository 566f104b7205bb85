"""Signing in and out, and one-time links."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.errors import Refused
from app.web.accounts import SHORTEST_PASSWORD, Role, Wait
from app.web.api.problems import Problem, errors
from app.web.auth import Viewer, end_session, identified, shown, start_session
from app.web.i18n import duration, t
from app.web.rates import BAD_TOKENS, address
from app.web.render import own_path, redirect, render
from app.web.state import state_of

log = structlog.get_logger("toban.web")

# Without sign-in; without a form's token, too; and with sign-in.
public = APIRouter()
tokens = APIRouter()
private = APIRouter()


@public.get("/sign-in")
def sign_in_page(request: Request, next: str = "") -> Response:  # noqa: A002 - the parameter's name in the address
    if identified(request) is not None:
        return redirect(own_path(next))
    return render(request, "sign_in.html", next=own_path(next), name="", error=None)


@public.post("/sign-in")
def sign_in(
    request: Request,
    name: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002 - the field's name
) -> Response:
    state = state_of(request)
    found = state.accounts.sign_in(name, password, address(request))
    if isinstance(found, Wait):
        log.warning("web.sign_in_throttled", address=address(request), seconds=found.seconds)
        words = t("Too many tries. The next one is possible in {span}.", span=duration(found.seconds))
        response = render(request, "sign_in.html", status=429, next=own_path(next), name=name, error=words)
        response.headers["Retry-After"] = str(found.seconds)
        return response
    if found is None:
        log.warning("web.sign_in_refused", address=address(request))
        words = t("The name or the password is wrong.")
        return render(request, "sign_in.html", status=403, next=own_path(next), name=name, error=words)
    response = redirect(own_path(next))
    start_session(request, response, found)
    return response


@private.post("/sign-out")
def sign_out(request: Request, user: Viewer) -> Response:
    response = redirect("/sign-in")
    end_session(request, response, user)
    return response


@public.get("/welcome/{token}")
def welcome_page(request: Request, token: str) -> Response:
    """Where a one-time link leads. Looking at it does not use it up: mail programs look, too."""
    link = state_of(request).accounts.link(token)
    status = 200 if link else 404
    return render(request, "welcome.html", status=status, link=link, name="", error=None, shortest=SHORTEST_PASSWORD)


@public.post("/welcome/{token}")
def welcome(
    request: Request,
    token: str,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
) -> Response:
    state = state_of(request)
    link = state.accounts.link(token)
    error = None
    user = None
    if link is not None:
        try:
            user = state.accounts.use_link(token, link["user"] or name, password)
        except Refused:
            error = t("A name has no spaces, and a password at least {n} characters.", n=SHORTEST_PASSWORD)
    session = state.accounts.open(user=user) if user else None
    if session is None:
        status = 400 if error else 404
        link = link if error else None
        return render(
            request, "welcome.html", status=status, link=link, name=name, error=error, shortest=SHORTEST_PASSWORD
        )
    response = redirect("/")
    start_session(request, response, session)
    return response


class Session(BaseModel):
    name: str = Field(examples=["mika@example.com"])
    role: Role


@tokens.post("/api/session", response_model=Session, tags=["sign-in"], responses=errors(common=(401, 429, 500, 503)))
def exchange(request: Request, _: Annotated[None, Depends(shown)] = None) -> Response:
    """An access token of Supabase Auth (`Authorization: Bearer …`) becomes a session, as long as the token lasts.

    No other site can send this header from a reader's browser, so no form's token is needed.
    """
    state = state_of(request)
    state.rates.check(BAD_TOKENS, request)
    scheme, _space, token = request.headers.get("authorization", "").partition(" ")
    guest = state.supabase.guest(token.strip()) if scheme.lower() == "bearer" and state.supabase.on else None
    if guest is None:
        state.rates.count(BAD_TOKENS, request)
        words = "send the access token of a person who has a role here, as `Authorization: Bearer …`"
        raise Problem(401, "Unauthorized", words, headers={"WWW-Authenticate": "Bearer"})
    seconds = guest.seconds()
    session = state.accounts.open(seconds=seconds, guest=guest.name, role=guest.role)
    response = JSONResponse({"name": guest.name, "role": guest.role})
    if session:
        start_session(request, response, session, seconds)
    return response
