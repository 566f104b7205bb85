"""How many incidents are open, for other pages: /badge.svg and /badge.json."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from app.web.auth import User, api_key
from app.web.i18n import nt, t
from app.web.render import environment

router = APIRouter()
Reads = Annotated[User, Depends(api_key("badge"))]


@router.get("/badge.svg")
def svg(user: Reads) -> Response:
    words = nt("{n} incident", "{n} incidents", user.badge) if user.badge else t("all well")
    # Wide characters take about twice the room.
    width = round(14 + sum(12 if ord(character) > 0x2E7F else 6.6 for character in words))
    text = environment().get_template("badge.svg").render(words=words, width=width, good=not user.badge)
    return Response(text, media_type="image/svg+xml", headers={"Cache-Control": "no-cache, max-age=0"})


@router.get("/badge.json")
def as_json(_request: Request, user: Reads) -> Response:
    return JSONResponse({"incidents": user.badge})
