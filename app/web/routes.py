"""Every page, event stream and API, and what each asks of who comes."""

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.web import badge, events, health, preferences, sign_in
from app.web.api import batches, monitor, transcribe
from app.web.auth import Viewer, form, viewer
from app.web.pages import routers
from app.web.render import STATIC, redirect

home = APIRouter()


@home.get("/")
def first(_user: Viewer) -> Response:
    return redirect("/incidents")


class Static(StaticFiles):
    """Files whose address changes with their contents may be kept for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        lasting = b"v=" in scope.get("query_string", b"")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return response


def install(app: FastAPI) -> None:
    app.mount("/static", Static(directory=STATIC), name="static")
    # Without sign-in: health, and what leads to one. A test knows these routes.
    app.include_router(health.router)
    # With a secret of their own, that no browser sends by itself.
    app.include_router(sign_in.tokens)
    app.include_router(monitor.router)
    for router in (sign_in.public, preferences.public):
        app.include_router(router, dependencies=[Depends(form)])
    # An API key of its scope is enough.
    app.include_router(badge.router)
    for router in (transcribe.router, batches.router):
        app.include_router(router)
    for router in (home, events.router, sign_in.private, preferences.private, *routers):
        app.include_router(router, dependencies=[Depends(viewer), Depends(form)])
