"""Language, theme and time zone: cookies of the reader's own, with or without sign-in."""

from typing import Annotated
from zoneinfo import available_timezones

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import Response

from app.web.auth import YEAR, secure
from app.web.i18n import t
from app.web.reader import LANGUAGE_COOKIE, LANGUAGES, THEME_COOKIE, THEMES, ZONE_COOKIE, zone_named
from app.web.render import own_path, redirect, render

# The sign-in page has the switches, too.
public = APIRouter()
private = APIRouter()


@private.get("/preferences")
def preferences_page(request: Request, next: str = "") -> Response:  # noqa: A002 - the parameter's name in the address
    return render(request, "preferences.html", next=own_path(next), zones=sorted(available_timezones()), themes=THEMES)


@public.post("/preferences")
def preferences(
    request: Request,
    language: Annotated[str, Form()] = "",
    theme: Annotated[str, Form()] = "",
    zone: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002 - the field's name
) -> Response:
    """What is left out stays."""
    if zone and zone_named(zone) is None:
        raise HTTPException(400, t("There is no time zone {zone}; one is called Asia/Tokyo.", zone=zone))
    response = redirect(own_path(next))
    for name, value, good in (
        (LANGUAGE_COOKIE, language, language in LANGUAGES),
        (THEME_COOKIE, theme, theme in THEMES),
        (ZONE_COOKIE, zone, bool(zone)),
    ):
        if good:
            # The pages' script reads them, and sets the zone where none is chosen.
            response.set_cookie(name, value, max_age=YEAR, path="/", secure=secure(request), samesite="lax")
    return response
