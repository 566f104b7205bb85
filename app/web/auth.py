"""Who asks: the dependencies `viewer`, `operator`, `api_key(scope)` and `form`.

A browser has a session (a signed cookie), a program an API key (`Authorization: Bearer toban_…` or `X-API-Key`) or an
access token of Supabase Auth (`Authorization: Bearer …`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from app.web.accounts import KEY_PREFIX, Role
from app.web.i18n import t
from app.web.rates import BAD_TOKENS
from app.web.reader import Language, reader
from app.web.signing import new_token
from app.web.state import State, state_of

YEAR = 365 * 24 * 3600  # s
# Methods that change nothing; RFC 9110, section 9.2.1.
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class User:
    """`session`: the token of the browser's session; `scopes`: what an API key may do; `badge`: open incidents."""

    name: str
    role: Role
    locale: Language
    badge: int
    session: str | None = None
    local: bool = False
    scopes: frozenset[str] | None = None

    @property
    def operates(self) -> bool:
        return self.role == "operator"

    def __repr__(self) -> str:
        return f"User({self.name!r}, {self.role!r})"


class SignInNeeded(Exception):
    """Nobody is signed in. A page leads to the sign-in, an API answers 401."""


# --- cookies ----------------------------------------------------------------------------------------------------------


def secure(request: Request) -> bool:
    return request.url.scheme == "https" or state_of(request).settings.web.secure


def cookie_name(request: Request, name: str) -> str:
    """With https, the prefix that no other host and no page without https can set; RFC 6265bis, section 4.1.3.2."""
    return f"__Host-toban_{name}" if secure(request) else f"toban_{name}"


def set_cookie(request: Request, response: Response, name: str, value: str, max_age: int | None = None) -> None:
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=max_age,
        path="/",
        secure=secure(request),
        httponly=True,
        samesite="lax",
    )


def drop_cookie(request: Request, response: Response, name: str) -> None:
    response.delete_cookie(cookie_name(request, name), path="/", secure=secure(request), httponly=True, samesite="lax")


def start_session(request: Request, response: Response, token: str, seconds: float = YEAR) -> None:
    """Give the browser its session. When that ends the database knows; use puts it off, and this cookie stays."""
    set_cookie(request, response, "session", state_of(request).signing.sign("session", token), int(seconds))
    drop_cookie(request, response, "visit")


def end_session(request: Request, response: Response, user: User) -> None:
    state = state_of(request)
    if user.session:
        state.accounts.close(user.session)
        state.events.drop(user.session)
    drop_cookie(request, response, "session")


# --- who it is --------------------------------------------------------------------------------------------------------


def identified(request: Request) -> User | None:
    """Who asks; None: nobody we know. Looked up once a request."""
    if not hasattr(request.state, "user"):
        user = _identify(request)
        request.state.user = user
        reader().user = user
    found: User | None = request.state.user
    return found


def sent_token(request: Request) -> str:
    """The API key or access token that a program shows; "": none."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()


def _identify(request: Request) -> User | None:
    state = state_of(request)
    if token := sent_token(request):
        state.rates.check(BAD_TOKENS, request)
        user = _of_key(state, token) if token.startswith(KEY_PREFIX) else _of_supabase(state, token)
        if user is None:
            state.rates.count(BAD_TOKENS, request)
        return user
    session = state.signing.read("session", request.cookies.get(cookie_name(request, "session")))
    if session is None or (found := state.accounts.session(session)) is None:
        return None
    return User(found["name"], found["role"], reader().language, found["badge"], session=session, local=found["local"])


def _of_key(state: State, key: str) -> User | None:
    found = state.accounts.key(key)
    if found is None:
        return None
    scopes = frozenset(found["scopes"])
    role: Role = "operator" if "operate" in scopes else "viewer"
    return User(found["name"], role, reader().language, found["badge"], scopes=scopes)


def _of_supabase(state: State, token: str) -> User | None:
    if not state.supabase.on or (guest := state.supabase.guest(token)) is None:
        return None
    badge = state.services.database.call("toban_badge")["badge"]
    return User(guest.name, guest.role, reader().language, badge)


# --- dependencies -----------------------------------------------------------------------------------------------------


_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="an API key (`toban key add`), or an access token of Supabase Auth",
)
_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key", description="an API key")


def shown(
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    _key: Annotated[str | None, Security(_KEY)],
) -> None:
    """What the OpenAPI document says of how to come in; who it is, is found out below."""


def known(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
    """Whoever is signed in, or has an API key of any scope."""
    return _somebody(request)


def viewer(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
    """Whoever is signed in, or has an API key of the scope `read` or `operate`."""
    user = _somebody(request)
    if user.scopes is not None and not user.scopes & {"read", "operate"}:
        raise HTTPException(403, t("This API key does not have the scope {scope}.", scope="read"))
    return user


def operator(request: Request) -> User:
    """An operator, or an API key of the scope `operate`."""
    user = viewer(request)
    if not user.operates:
        raise HTTPException(403, t("Only operators may do this."))
    return user


def api_key(scope: str) -> Callable[[Request], User]:
    """A dependency: an API key of this scope, or anybody who is signed in."""

    def keyed(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
        user = _somebody(request)
        if user.scopes is not None and scope not in user.scopes:
            raise HTTPException(403, t("This API key does not have the scope {scope}.", scope=scope))
        return user

    return keyed


Viewer = Annotated[User, Depends(viewer)]
Operator = Annotated[User, Depends(operator)]


def _somebody(request: Request) -> User:
    user = identified(request)
    if user is None:
        raise SignInNeeded
    return user


# --- forms ------------------------------------------------------------------------------------------------------------


def form_token(request: Request, response: Response | None = None) -> str:
    """What this reader's forms carry. A visitor without a session gets a cookie for it, on `response`."""
    state = state_of(request)
    user = identified(request)
    if user is not None and user.session is not None:
        return state.signing.form_token(user.session)
    visit = getattr(request.state, "visit", None)
    if visit is None:
        visit = state.signing.read("visit", request.cookies.get(cookie_name(request, "visit"))) or new_token()
        request.state.visit = visit
    if response is not None:
        set_cookie(request, response, "visit", state.signing.sign("visit", visit))
    return state.signing.form_token(visit)


def check_form(request: Request, sent: str) -> None:
    """Raises 403 unless `sent` is what a form of ours carries.

    A program shows what no browser sends by itself, so it needs no such token.
    """
    state = state_of(request)
    user = identified(request)
    if user is not None and user.session is None:
        return
    binding = user.session if user else state.signing.read("visit", request.cookies.get(cookie_name(request, "visit")))
    if binding is None or not state.signing.form_token_fits(binding, sent):
        raise HTTPException(403, t("This form is out of date. Go back, reload the page and try again."))


async def form(request: Request) -> None:
    """For every router with forms: a request that changes something has to come from a page of ours."""
    if request.method in SAFE:
        return
    from starlette.concurrency import run_in_threadpool

    sent = request.headers.get("x-csrf-token") or (await request.form()).get("csrf")
    await run_in_threadpool(check_form, request, sent if isinstance(sent, str) else "")
