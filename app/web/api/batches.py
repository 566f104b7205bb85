"""GET /batches/{id}, its events, and DELETE: how a batch that somebody asked for gets on.

Its first nine fields are those of the old transcription service, so that one parser reads every answer.
"""

import json
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.errors import Refused, TobanError
from app.speech.transcribe import time_block
from app.web.api.access import any_of, keyed
from app.web.api.problems import Problem, errors, phrase
from app.web.api.shared import link, waits_for
from app.web.auth import User
from app.web.batches import Batches, Found
from app.web.pages.words import share
from app.web.state import State, state_of

PING = 15  # s between heartbeats, so that proxies keep a silent stream open
# A change may be committed a little after the moment that it bears; what is told twice does no harm.
MARGIN = timedelta(seconds=10)
DONE = "done"
Status = Literal["success", "partial", "error", "processing", "cancelled"]
FileState = Literal["pending", "queued", "processing", "completed", "skipped", "failed", "cancelled"]

SUMMARY = {"total_files": 6, "already_completed": 2, "pending_processed": 4, "errors": 0}
FINISHED: dict[str, Any] = {
    "status": "success",
    "device_id": "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93",
    "date": "2025-07-18",
    "summary": SUMMARY,
    "processed_files": ["files/9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18/12-00/audio.wav"],
    "processed_time_blocks": ["12-00"],
    "error_files": None,
    "execution_time_seconds": 11.3,
    "message": "pendingステータスの4件中4件を正常に処理しました",
}
ID = "0f0e5a52-7a2b-4d0c-9d1e-0d7a4a1d7b11"
UNDER_WAY: dict[str, Any] = {
    **FINISHED,
    "status": "processing",
    "summary": {**SUMMARY, "pending_processed": 1},
    "message": "pendingステータスの4件中1件を処理しました。残りの3件は処理中です",
    "batch_id": ID,
    "status_url": f"/batches/{ID}",
    "events_url": f"/batches/{ID}/events",
    "eta_seconds": 90,
    "waits_for": [],
}


class Summary(BaseModel):
    """How many files."""

    total_files: int = Field(description="of this device and day, whatever their status")
    already_completed: int = Field(description="were completed before this was asked for")
    pending_processed: int = Field(description="have been transcribed for it so far")
    errors: int = Field(description="have failed; a recording that is not there is no error, and counted nowhere")


class Answer(BaseModel):
    """The old service's answer, field for field."""

    model_config = ConfigDict(json_schema_extra={"examples": [FINISHED]})

    status: Status = Field(
        description="`success`: no file failed; `partial`: some did; `error`: all did; `processing`: not done yet; "
        "`cancelled`: by DELETE"
    )
    device_id: str
    date: date
    summary: Summary
    processed_files: list[str] = Field(description="those that have been transcribed, in the order of their time")
    processed_time_blocks: list[str] = Field(
        description="the half hours that they lie in", examples=[["12-00", "14-00"]]
    )
    error_files: list[str] | None = Field(description="those that have failed; null: none has")
    execution_time_seconds: float = Field(description="from the request to the last file's end, or until now")
    message: str = Field(description="the same for people, in Japanese")


class Reason(BaseModel):
    """What has to change before the batch goes on."""

    code: Literal["shadow", "paused", "excluded", "held", "no_worker", "later", "not_ready", "batch_limit"]
    detail: str = Field(description="the same for people, in the language of `Accept-Language`")


class UnderWay(Answer):
    """The same fields as far as they are known, and where to ask for more."""

    model_config = ConfigDict(json_schema_extra={"examples": [UNDER_WAY]})

    batch_id: UUID
    status_url: str = Field(description="absolute with `WEB_BASE_URL`, else a path with `ROOT_PATH` before it")
    events_url: str = Field(description="Server-Sent Events: `file`, `batch`, and at the end `done`")
    eta_seconds: int | None = Field(
        description="until the last file is done, by how long the latest took; null: not known, or nothing goes on"
    )
    waits_for: list[Reason] = Field(description="empty: it is only a matter of time")


class File(BaseModel):
    """One recording of a batch."""

    file: str | None = Field(description="its key in the bucket")
    recorded_at: datetime
    time_block: str = Field(examples=["12-30"])
    state: FileState = Field(description="`skipped`: there is no such recording, or somebody else dealt with it")
    progress: float | None = Field(description="0 to 1, of one that is being heard")
    error: str | None = Field(description="why it failed, was skipped, or has to be tried again")


class Batch(UnderWay):
    """A batch with all its files."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **UNDER_WAY,
                    "model": None,
                    "created_at": "2025-07-18T21:10:00.000000+00:00",
                    "cancelled_at": None,
                    "files": [
                        {
                            "file": FINISHED["processed_files"][0],
                            "recorded_at": "2025-07-18T03:00:00Z",
                            "time_block": "12-00",
                            "state": "completed",
                            "progress": None,
                            "error": None,
                        }
                    ],
                }
            ]
        }
    )

    model: str | None = Field(description="the model that was asked for; null: the workers' own")
    created_at: datetime
    cancelled_at: datetime | None
    files: list[File] = Field(description="those that waited when it was asked for")


# --- shapes -----------------------------------------------------------------------------------------------------------


def answer(found: Found, zone: ZoneInfo) -> dict[str, Any]:
    """The nine old fields, in their order."""
    by: dict[str, list[Found]] = {}
    for item in found["items"]:
        by.setdefault(item["state"], []).append(item)
    processed, failed = by.get("completed", []), by.get("failed", [])
    ended = [item["ended_at"] for item in found["items"] if item["ended_at"]]
    until = max(map(_moment, ended), default=_moment(found["created_at"])) if not found["open"] else None
    seconds = ((until or _moment(found["now"])) - _moment(found["created_at"])).total_seconds()
    return {
        "status": _status(found, processed=len(processed), failed=len(failed)),
        "device_id": found["device"],
        "date": found["day"],
        "summary": {
            "total_files": found["total"],
            "already_completed": found["completed"],
            "pending_processed": len(processed),
            "errors": len(failed),
        },
        "processed_files": [item["file"] for item in processed],
        "processed_time_blocks": list(dict.fromkeys(time_block(_moment(item["at"]), zone)[1] for item in processed)),
        "error_files": [item["file"] for item in failed] or None,
        "execution_time_seconds": round(max(seconds, 0.0), 1),
        "message": _message(found, len(processed)),
    }


def _status(found: Found, *, processed: int, failed: int) -> Status:
    if found["cancelled_at"]:
        return "cancelled"
    if found["open"]:
        return "processing"
    if not failed:
        return "success"
    return "partial" if processed else "error"


def _message(found: Found, processed: int) -> str:
    """In the old service's words, which its clients may look for."""
    files = f"pendingステータスの{len(found['items'])}件中{processed}件を"
    if found["cancelled_at"]:
        return f"{files}処理しました。残りは取り消されました"
    if found["open"]:
        return f"{files}処理しました。残りの{found['open']}件は処理中です"
    return f"{files}正常に処理しました"


def under_way(request: Request, found: Found) -> dict[str, Any]:
    """`UnderWay`."""
    here = address(request, found["id"])
    return {
        **answer(found, state_of(request).settings.audio.zone),
        "batch_id": found["id"],
        "status_url": here,
        "events_url": f"{here}/events",
        "eta_seconds": None if found["eta"] is None else round(found["eta"]),
        "waits_for": waits_for(found["why"]),
    }


def whole(request: Request, found: Found) -> dict[str, Any]:
    """`Batch`."""
    zone = state_of(request).settings.audio.zone
    return {
        **under_way(request, found),
        "model": found["model"],
        "created_at": found["created_at"],
        "cancelled_at": found["cancelled_at"],
        "files": [file(item, zone) for item in found["items"]],
    }


def file(item: Found, zone: ZoneInfo) -> dict[str, Any]:
    """`File`."""
    return {
        "file": item["file"],
        "recorded_at": item["at"],
        "time_block": time_block(_moment(item["at"]), zone)[1],
        "state": item["state"],
        "progress": share(item["progress"]) if item["state"] == "processing" else None,
        "error": item["error"],
    }


def address(request: Request, batch: str) -> str:
    """Where a batch is."""
    return link(request, f"/batches/{batch}")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# --- routes -----------------------------------------------------------------------------------------------------------

router = APIRouter(tags=["Transcription"])
Reads = Annotated[User, Depends(any_of("transcribe", "read", "operate"))]
Cancels = Annotated[User, Depends(keyed("transcribe"))]


@router.get("/batches/{batch_id}", response_model=Batch, responses=errors(404, 422))
def batch(request: Request, _user: Reads, batch_id: UUID) -> Response:
    """How a batch gets on, file by file. Batches are kept for `TOBAN_KEEP_BATCHES_DAYS`."""
    return JSONResponse(whole(request, state_of(request).batches.see(str(batch_id))))


@router.delete("/batches/{batch_id}", response_model=Batch, responses=errors(404, 422))
def cancel(request: Request, _user: Cancels, batch_id: UUID) -> Response:
    """Cancel a batch: what has not begun loses its precedence and waits as before; what runs is finished.

    Of a batch that is done nothing changes; cancelling twice is the same as once.
    """
    return JSONResponse(whole(request, state_of(request).batches.cancel(str(batch_id))))


@router.get(
    "/batches/{batch_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "`file`: a file that has changed, as `File`; `batch`: the sums, as in a 202; `done`: the "
            "same for the last time, and the stream ends",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": f"id: done\nevent: done\ndata: {json.dumps(FINISHED, ensure_ascii=False)}\n\n",
                }
            },
        },
        204: {"description": "`Last-Event-ID` says that all has been told"},
        **errors(404, 422),
    },
)
async def events(
    request: Request,
    _user: Reads,
    batch_id: UUID,
    last_event_id: Annotated[
        str, Header(description="the id of the last event that was heard: the stream goes on after it")
    ] = "",
) -> Response:
    """Follow a batch (Server-Sent Events). After a broken connection, what was told already is left out."""
    state = state_of(request)
    found = await run_in_threadpool(state.batches.see, str(batch_id))
    if last_event_id == DONE and not found["open"]:
        return Response(status_code=204)
    if not state.batches.room:
        raise Problem(503, phrase(503), "too many streams are open", headers={"Retry-After": "30"})
    return EventSourceResponse(_told(request, state, found, last_event_id), ping=PING)


async def _told(request: Request, state: State, found: Found, last_event_id: str) -> AsyncIterator[ServerSentEvent]:
    batches: Batches = state.batches
    zone = state.settings.audio.zone
    since = _position(last_event_id)
    told: dict[str, str] = {
        item["key"]: _json(file(item, zone)) for item in found["items"] if since and _was_told(item, since)
    }
    sums = ""
    retry: int | None = 2000
    async with batches.watching(found, closely=True) as watched:
        while True:
            news = watched.news
            at = found["now"]
            for item in found["items"]:
                text = _json(file(item, zone))
                if told.get(item["key"]) != text:
                    told[item["key"]] = text
                    yield ServerSentEvent(event="file", id=at, data=text, retry=retry)
                    retry = None
            data = under_way(request, found)
            if not found["open"]:
                yield ServerSentEvent(event="done", id=DONE, data=_json(data), retry=retry)
                return
            # (Time alone is no news.)
            if sums != (sums := _json({**data, "execution_time_seconds": None, "eta_seconds": None})):
                yield ServerSentEvent(event="batch", id=at, data=_json(data), retry=retry)
                retry = None
            await news.wait()
            if batches.ending:
                return
            try:
                found = await batches.latest(watched, found["id"])
            except Refused:
                found = _erased(found)
            except TobanError:
                return  # the client asks again, and hears what is the matter


def _erased(found: Found) -> Found:
    """The last that is told of a batch that is gone: nothing of its files."""
    nothing = {"items": [], "open": 0, "total": 0, "completed": 0, "why": [], "eta": None}
    return {**found, **nothing, "cancelled_at": found["cancelled_at"] or found["now"]}


def _position(last_event_id: str) -> datetime | None:
    """The moment until which a client has heard everything; None: it is new here, or says nothing that we said."""
    try:
        moment = datetime.fromisoformat(last_event_id)
        return moment - MARGIN if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _was_told(item: Found, since: datetime) -> bool:
    return bool(item["ended_at"]) and _moment(item["ended_at"]) < since


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
