"""/health/live: this process answers. /health/ready: the database does, too. Both without sign-in; they say no more."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.errors import TobanError
from app.web.state import state_of

router = APIRouter(prefix="/health", tags=["health"])


class Health(BaseModel):
    status: str


@router.head("/live", include_in_schema=False)
@router.get("/live", response_model=Health)
def live() -> Response:
    """This process answers."""
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model=Health, responses={503: {"model": Health, "description": "it does not"}})
def ready(request: Request) -> Response:
    """The database answers, too."""
    try:
        state_of(request).services.database.call("toban_badge")
    except TobanError:
        return JSONResponse({"status": "the database does not answer"}, 503, {"Retry-After": "5"})
    return JSONResponse({"status": "ok"})
