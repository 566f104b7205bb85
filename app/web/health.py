"""/health/live: this process answers. /health/ready: so does all that work needs. Both without sign-in."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.broker import ping
from app.errors import TobanError
from app.readiness import Part, parts_of
from app.services import Services
from app.web.state import state_of

log = structlog.get_logger("toban.web")
router = APIRouter(prefix="/health", tags=["health"])

# How long an answer is given again, and how long one is waited for, seconds.
KEPT, DEADLINE = 1.5, 3.0
RETRY_AFTER = "5"  # s
NEEDED = "database,broker"


class PartState(BaseModel):
    """How a part is."""

    state: Literal["ok", "failing"]
    needed: bool = Field(description="whether the answer is 503 when it fails")
    reason: str = Field(examples=["the last tick came 4 s ago"])


class Readiness(BaseModel):
    """`ready`: all is well; `degraded`: something fails that is not needed; `down`: something needed fails."""

    status: Literal["ready", "degraded", "down"]
    parts: dict[str, PartState] = Field(
        description="`database`, `broker`, `beat`, `worker:<queue>` for each queue that has ever had work, `rows` (the "
        "oldest that is due), `listener` (whether new rows start at once)"
    )


class Liveness(BaseModel):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Probe:
    """A check in a thread of its own: one at a time, its answer kept for a moment; the event loop never waits.

    `check` raises `TobanError`. One that does not come back costs this thread, and nothing else.
    """

    def __init__(self, name: str, check: Callable[[], Any]) -> None:
        self._check = check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"toban-{name}")
        self._task: asyncio.Task[Any] | None = None
        self._done = 0.0

    async def answer(self) -> Any:  # noqa: ANN401 - what the check returns
        """What the check returned. Raises `TobanError`, or `TimeoutError`."""
        if self._task is None or (self._task.done() and time.monotonic() - self._done > KEPT):
            self._task = asyncio.create_task(self._run())
        found = await asyncio.wait_for(asyncio.shield(self._task), DEADLINE)
        if isinstance(found, TobanError):
            raise found
        return found

    async def _run(self) -> Any:  # noqa: ANN401
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._check)
        except TobanError as error:
            return error
        except Exception as error:
            log.exception("health.broken")
            return TobanError(str(error))
        finally:
            self._done = time.monotonic()


class Ready:
    """How everything is, as far as this process can see."""

    def __init__(self, services: Services) -> None:
        self._database = Probe("health-database", partial(services.database.call, "toban_health"))
        self._broker = Probe("health-broker", partial(ping, services.settings.broker))
        self._failing: set[str] = set()

    async def parts(self) -> dict[str, Part]:
        """Every part that can be seen, at most `DEADLINE` later."""
        found = await asyncio.gather(self._database.answer(), self._broker.answer(), return_exceptions=True)
        parts = {"database": self._part("database", found[0]), "broker": self._part("broker", found[1])}
        return parts if isinstance(found[0], BaseException) else parts | parts_of(found[0])

    def _part(self, name: str, found: object) -> Part:
        """Why it fails stands in the log, once: addresses are nobody's business."""
        if isinstance(found, BaseException) and not isinstance(found, TobanError | TimeoutError):
            raise found
        if isinstance(found, BaseException):
            late = isinstance(found, TimeoutError)
            if name not in self._failing:
                log.warning("health.failing", part=name, reason="no answer in time" if late else str(found))
            self._failing.add(name)
            return Part(False, f"has not answered within {DEADLINE:g} s" if late else "can't be used; the log says why")
        if name in self._failing:
            log.info("health.fine", part=name)
        self._failing.discard(name)
        return Part(True, "answers")


@router.head("/live", include_in_schema=False)
@router.get("/live", response_model=Liveness)
async def live() -> Response:
    """This process answers; it says nothing of anything else, so restart it when this fails, and only then."""
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "a part that is needed fails"}},
)
async def ready(
    request: Request,
    need: Annotated[
        str,
        Query(
            description="the parts, separated by commas, without which the answer is 503; one that can't be seen, "
            "because the database does not answer, fails",
            examples=["database", "database,broker,beat,worker:whisper"],
        ),
    ] = NEEDED,
) -> Response:
    """Database, broker, beat, workers and rows. Probing costs next to nothing: an answer is kept for 1.5 s."""
    needed = {name.strip() for name in need.split(",") if name.strip()}
    parts = await state_of(request).ready.parts()
    parts |= {name: Part(False, "there is no such part, or it can't be seen now") for name in needed - parts.keys()}
    down = any(not parts[name].fine for name in needed)
    status = "down" if down else "ready" if all(part.fine for part in parts.values()) else "degraded"
    answer = Readiness(
        status=status,
        parts={
            name: PartState(state="ok" if part.fine else "failing", needed=name in needed, reason=part.reason)
            for name, part in parts.items()
        },
    )
    return JSONResponse(answer.model_dump(), 503 if down else 200, {"Retry-After": RETRY_AFTER} if down else None)
