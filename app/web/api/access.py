"""Who may use the two endpoints of the old services: `legacy(scope)`.

The old services knew no keys. So that their clients can move one by one, addresses in LEGACY_ANONYMOUS_CIDRS need none
there; nowhere else, and nobody by default.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from app.web.api.problems import Problem
from app.web.auth import SAFE, SignInNeeded, User, check_form, identified, sent_token, shown
from app.web.i18n import t
from app.web.proxies import forwarded, plain
from app.web.rates import address
from app.web.reader import reader
from app.web.state import state_of

# What browsers send, and no script of the old clients: a page that somebody in such a network has open must not speak
# for the network, whatever its origin (DNS rebinding makes any origin look like ours).
_BROWSERS = ("origin", "sec-fetch-site", "sec-fetch-mode", "cookie")
# What a proxy says of whom it asks for. Where none of it has become the caller's address, the proxy is not trusted or
# names nobody, and the address is only its own.
_FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "x-forwarded-proto", "via")


def keyed(scope: str) -> Callable[[Request], User]:
    """A dependency: an API key of `scope` (or `operate`), or a signed-in operator."""

    def allowed(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
        user = identified(request)
        if user is None:
            raise SignInNeeded
        return _may(request, user, scope)

    return allowed


def legacy(scope: str) -> Callable[[Request], User]:
    """A dependency: the same, or an address that needs no key."""

    def allowed(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
        user = identified(request)
        if user is None and not sent_token(request) and anonymous(request):
            return User(f"{address(request)} (no key)", "viewer", reader().language, 0, scopes=frozenset({scope}))
        if user is None:
            raise SignInNeeded
        return _may(request, user, scope)

    return allowed


def _may(request: Request, user: User, scope: str) -> User:
    if user.scopes is not None and not user.scopes & {scope, "operate"}:
        raise Problem(403, "Forbidden", t("This API key does not have the scope {scope}.", scope=scope))
    if user.scopes is None and not user.operates:
        raise Problem(403, "Forbidden", t("Only operators may do this."))
    if user.session is not None and request.method not in SAFE:
        check_form(request, request.headers.get("x-csrf-token", ""))
    return user


def any_of(*scopes: str) -> Callable[[Request], User]:
    """A dependency: an API key of one of these scopes, or anybody who is signed in."""

    def allowed(request: Request, _: Annotated[None, Depends(shown)] = None) -> User:
        user = identified(request)
        if user is None:
            raise SignInNeeded
        if user.scopes is not None and not user.scopes & set(scopes):
            words = t("This API key does not have the scope {scope}.", scope=" / ".join(scopes))
            raise Problem(403, "Forbidden", words)
        return user

    return allowed


def anonymous(request: Request) -> bool:
    """Whether the caller's address is in LEGACY_ANONYMOUS_CIDRS, and is really the caller's."""
    networks = state_of(request).settings.web.anonymous
    if not networks or any(name in request.headers for name in _BROWSERS):
        return False
    if any(name in request.headers for name in _FORWARDED) and not forwarded(request):
        return False
    own = plain(address(request))
    return own is not None and any(own in network for network in networks)
