"""Every page, event stream and API, and what each asks of who comes."""

from typing import Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.web import badge, events, health, metrics, preferences, sign_in
from app.web.api import analysis, batches, document, monitor, transcribe, wake
from app.web.auth import form, viewer
from app.web.failures import wants_page
from app.web.pages import routers
from app.web.render import STATIC, redirect, url

home = APIRouter()


class Status(BaseModel):
    """That this process answers; `/health/ready` says whether all else does."""

    status: Literal["ok"] = "ok"
    service: Literal["toban"] = "toban"
    docs: str = Field(examples=["/docs"])
    openapi: str = Field(examples=["/openapi.json"])


@home.head("/", include_in_schema=False)
@home.get("/", response_model=Status, tags=["health"], summary="Status")
def first(request: Request) -> Response:
    """For programs, as the old services had it: a status, without sign-in. A browser is led to the pages."""
    if not wants_page(request):
        return JSONResponse(Status(docs=url("/docs"), openapi=url("/openapi.json")).model_dump())
    viewer(request)
    return redirect("/incidents")


class Static(StaticFiles):
    """Files whose address changes with their contents may be kept for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        lasting = b"v=" in scope.get("query_string", b"")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return response


def install(app: FastAPI) -> None:
    app.mount("/static/swagger-ui", Static(directory=document.swagger_ui()), name="swagger-ui")
    app.mount("/static", Static(directory=STATIC), name="static")
    # Without sign-in: health, and what leads to one. A test knows these routes.
    app.include_router(health.router)
    app.include_router(home)
    # With a secret of their own, that no browser sends by itself.
    app.include_router(sign_in.tokens)
    app.include_router(monitor.router)
    app.include_router(wake.router)
    for router in (sign_in.public, preferences.public):
        app.include_router(router, dependencies=[Depends(form)], include_in_schema=False)
    # An API key of its scope is enough.
    for router in (badge.router, metrics.router, document.machine, analysis.router, transcribe.router, batches.router):
        app.include_router(router)
    for router in (events.router, sign_in.private, preferences.private, document.page, *routers):
        app.include_router(router, dependencies=[Depends(viewer), Depends(form)], include_in_schema=False)


def first_parts(app: FastAPI) -> set[str]:
    """What our own paths begin with."""
    return {str(route.path or "").strip("/").split("/")[0] for route in iter_route_contexts(app.routes)} | {"static"}
