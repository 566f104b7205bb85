"""POST /fetch-and-transcribe: the old transcription service's one call, which waits no longer than a proxy does."""

import hashlib
import json
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.speech.memory import SIZES
from app.web.api.access import legacy
from app.web.api.batches import Answer, UnderWay, address, answer, under_way
from app.web.api.problems import Problem, errors, phrase
from app.web.api.shared import day, key_reused
from app.web.auth import User
from app.web.batches import SOURCE, Found, hold
from app.web.prefer import Began, Prefer, Wait, patience
from app.web.state import state_of

RETRY_AFTER = 5  # s


# (PostgreSQL's text holds no NUL.)
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class Transcription(BaseModel):
    """Which recordings; what else a body holds is passed over."""

    model_config = ConfigDict(
        title="TranscriptionRequest",
        json_schema_extra={"examples": [{"device_id": "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "date": "2025-07-18"}]},
    )

    device_id: Text
    date: Annotated[
        date, BeforeValidator(day, json_schema_input_type=date), Field(description="a day in `DEVICE_TIMEZONE`")
    ]
    model: Text | None = Field(
        None, description="one of the workers' models (`WHISPER_MODEL`, `WHISPER_EXTRA_MODELS`); default: their own"
    )


router = APIRouter(tags=["Transcription"])

HEADERS = {
    "Preference-Applied": {"description": "what of `Prefer` was followed", "schema": {"type": "string"}},
}


@router.post(
    "/fetch-and-transcribe",
    response_model=Answer,
    responses={
        200: {"description": "All is done, or there was nothing to do", "headers": HEADERS},
        202: {
            "model": UnderWay,
            "description": "Not done yet; it goes on, and `Location` tells how",
            "headers": {
                **HEADERS,
                "Location": {"description": "the batch", "schema": {"type": "string"}},
                "Retry-After": {"description": "seconds", "schema": {"type": "integer"}},
            },
        },
        **errors(422),
    },
)
async def fetch_and_transcribe(
    request: Request,
    began: Began,
    user: Annotated[User, Depends(legacy("transcribe"))],
    asked: Transcription,
    wait: Wait = None,
    prefer: Prefer = None,  # noqa: ARG001 - documented here; several lines of it are one
    idempotency_key: Annotated[
        str,
        Header(
            max_length=255,
            description="the same key with the same body is the same batch for 24 hours, whoever else asks for it",
        ),
    ] = "",
) -> Response:
    """Transcribe all pending recordings of a device and day, before others, and wait for it.

    Done by then: 200, in the old service's shape. Not done: 202 with the same fields as far as they are known; the work
    goes on whether anybody waits or not. Files that are under way already, or in another batch, are waited for and not
    done twice.
    """
    state = state_of(request)
    seconds, applied = patience(
        ",".join(request.headers.getlist("prefer")), wait, state.settings.web.web_wait.total_seconds()
    )
    found: Found = await run_in_threadpool(_ask, request, user, asked, idempotency_key)
    if found["open"]:
        state.wakes.ask(SOURCE)
        # In shadow mode another system does these rows, in its own time.
        if seconds and state.batches.room and {"code": "shadow"} not in found["why"]:
            if await hold(state.batches, found, began + seconds, lambda: _gone(request)) == "gone":
                raise ClientDisconnect
            found = await state.batches.last_look(found)
    headers = {"Preference-Applied": applied} if applied else {}
    here = address(request, found["id"])
    if not found["open"]:
        headers["Link"] = f'<{here}>; rel="describedby"'
        return JSONResponse(answer(found, state.settings.audio.zone), 200, headers)
    headers |= {"Location": here, "Retry-After": str(RETRY_AFTER)}
    return JSONResponse(under_way(request, found), 202, headers)


def _ask(request: Request, user: User, asked: Transcription, key: str) -> Found:
    """The batch. Raises `Problem` for a model that no worker holds, and for a key that was used for something else."""
    body = json.dumps([asked.device_id, asked.date.isoformat(), asked.model])
    told = state_of(request).batches.ask(
        asked.device_id,
        asked.date,
        asked.model,
        owner=f"{'user' if user.scopes is None else 'key'} {user.name}",
        key=key.strip('"') or None,
        fingerprint=hashlib.sha256(body.encode()).hexdigest(),
    )
    if "conflict" in told:
        raise key_reused()
    if refused := told.get("refused"):
        models, fits = refused["models"], [size for size in SIZES if size in refused["fits"]]
        raise Problem(
            422,
            phrase(422),
            f"no worker holds the model {asked.model}; they hold: {', '.join(models)}"
            + (f"; of the sizes of models these would fit there: {', '.join(fits)}" if fits else ""),
            code="model_not_held",
            models=models,
            fits=fits,
        )
    found: Found = told["batch"]
    return found


async def _gone(request: Request) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
