"""/health/live: this process answers. /health/ready: the database does, too. Both without sign-in; they say no more."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.errors import TobanError
from app.web.state import state_of

router = APIRouter(prefix="/health")


@router.head("/live", include_in_schema=False)
@router.get("/live")
def live() -> Response:
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
def ready(request: Request) -> Response:
    try:
        state_of(request).services.database.call("toban_badge")
    except TobanError:
        return JSONResponse({"status": "the database does not answer"}, 503, {"Retry-After": "5"})
    return JSONResponse({"status": "ok"})
