"""Who may use the endpoints of the old services: `legacy(scope)`."""

from collections.abc import Callable

from fastapi import HTTPException, Request

from app.web.auth import SAFE, SignInNeeded, User, check_form, identified
from app.web.i18n import t


def keyed(scope: str) -> Callable[[Request], User]:
    """A dependency: an API key of `scope` (or `operate`), or a signed-in operator."""

    def allowed(request: Request) -> User:
        user = identified(request)
        if user is None:
            raise SignInNeeded
        if user.scopes is not None and not user.scopes & {scope, "operate"}:
            raise HTTPException(403, t("This API key does not have the scope {scope}.", scope=scope))
        if user.scopes is None and not user.operates:
            raise HTTPException(403, t("Only operators may do this."))
        if user.session is not None and request.method not in SAFE:
            check_form(request, request.headers.get("x-csrf-token", ""))
        return user

    return allowed


def legacy(scope: str) -> Callable[[Request], User]:
    """The same, for the endpoints of the old services."""
    return keyed(scope)


def any_of(*scopes: str) -> Callable[[Request], User]:
    """A dependency: an API key of one of these scopes, or anybody who is signed in."""

    def allowed(request: Request) -> User:
        user = identified(request)
        if user is None:
            raise SignInNeeded
        if user.scopes is not None and not user.scopes & set(scopes):
            raise HTTPException(403, t("This API key does not have the scope {scope}.", scope=" / ".join(scopes)))
        return user

    return allowed
