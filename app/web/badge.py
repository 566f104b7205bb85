"""How many incidents are open, for other pages: /badge.svg and /badge.json."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.web.api.problems import errors
from app.web.auth import User, api_key
from app.web.i18n import nt, t
from app.web.render import environment

router = APIRouter(tags=["badge"])
Reads = Annotated[User, Depends(api_key("badge"))]


class Badge(BaseModel):
    incidents: int = Field(ge=0, description="how many are open", examples=[2])


@router.get(
    "/badge.svg",
    response_class=Response,
    responses={
        200: {"content": {"image/svg+xml": {"schema": {"type": "string"}}}, "description": "`2 incidents`"},
        **errors(),
    },
)
def svg(user: Reads) -> Response:
    """How many incidents are open, as a picture for other pages, in the language of `Accept-Language`."""
    words = nt("{n} incident", "{n} incidents", user.badge) if user.badge else t("all well")
    # Wide characters take about twice the room.
    width = round(14 + sum(12 if ord(character) > 0x2E7F else 6.6 for character in words))
    text = environment().get_template("badge.svg").render(words=words, width=width, good=not user.badge)
    return Response(text, media_type="image/svg+xml", headers={"Cache-Control": "no-cache, max-age=0"})


@router.get("/badge.json", response_model=Badge, responses=errors())
def as_json(_request: Request, user: Reads) -> Response:
    """How many incidents are open."""
    return JSONResponse({"incidents": user.badge})
