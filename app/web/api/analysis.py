"""POST /analyze-timeblock, as the old service had it, and what became of a block: GET /analyses/….

The prompt becomes a row of `dashboard` that waits, and the ledger does the rest: budgets, pace and retries hold for it
as for every other row.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.errors import Refused
from app.services import Services
from app.web.api.access import any_of, legacy
from app.web.api.batches import Reason
from app.web.api.problems import Problem, errors, phrase
from app.web.api.shared import day, key_reused, link, waits_for
from app.web.api.waiting import State, Waiting
from app.web.auth import User
from app.web.i18n import t
from app.web.prefer import Began, Prefer, Wait, patience
from app.web.state import state_of
from app.web.wakes import Wakes

SOURCE, QUEUE = "analysis", "gpt"
# Characters: an hour's talk has some 20,000; whatever is longer is no prompt of half an hour.
LONGEST_PROMPT = 100_000
# How long there may be no worker before that is an answer, seconds: one that is replaced is away for a moment.
GRACE = 10.0
RETRY_AFTER = 60
SHADOW = "the source analysis is in shadow mode, in which its rows stay as they are; `toban takeover` ends it"

router = APIRouter(tags=["analysis"])


# --- what comes in ----------------------------------------------------------------------------------------------------


def _block(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3])-(00|30)", text, re.ASCII):
        raise ValueError(t("write it as HH-00 or HH-30, from 00-00 to 23-30"))
    return text


def _plain(text: str) -> str:
    if not text.strip():
        raise ValueError(t("is empty"))
    if "\0" in text:
        raise ValueError(t("holds a NUL character, which the database can't store"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(t("holds half of a surrogate pair, which is no character")) from None
    return text


def _words(text: str) -> str:
    if len(text) > LONGEST_PROMPT:
        raise ValueError(t("has {n} characters; at most {most} are taken", n=len(text), most=LONGEST_PROMPT))
    return _plain(text)


Device = Annotated[
    str, Field(min_length=1, max_length=200, examples=["9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"]), AfterValidator(_plain)
]
Day = Annotated[
    str,
    AfterValidator(lambda text: day(text).isoformat()),
    Field(json_schema_extra={"format": "date"}, examples=["2025-07-18"]),
]
Block = Annotated[
    str,
    AfterValidator(_block),
    Field(json_schema_extra={"pattern": "^([01][0-9]|2[0-3])-(00|30)$"}, examples=["12-30"]),
]


class AnalysisRequest(BaseModel):
    """A prompt about one half hour of a device. Other members are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)

    prompt: Annotated[
        str,
        AfterValidator(_words),
        Field(
            json_schema_extra={"minLength": 1, "maxLength": LONGEST_PROMPT},
            examples=["How was this half hour? They talked about the garden and laughed."],
        ),
    ]
    device_id: Device
    date: Day
    time_block: Block


# --- what goes out ----------------------------------------------------------------------------------------------------


class Verdict(BaseModel):
    summary: str
    vibe_score: float = Field(ge=-100, le=100)
    behavior: str


class Analysis(BaseModel):
    """As the old service answered."""

    status: Literal["success", "processing", "failed"]
    message: str
    device_id: str
    date: str
    time_block: str
    analysis_result: Verdict | None
    database_save: bool
    processed_at: str | None
    model_used: str | None


class AnalysisState(Analysis):
    """The same as far as it is known, and where to ask for the rest."""

    state: Literal["pending", "queued", "processing", "completed", "skipped", "failed"]
    waits_for: list[Reason] = Field(description="empty: it is only a matter of time")
    status_url: str = Field(description="absolute with `WEB_BASE_URL`, else a path with `ROOT_PATH` before it")
    error: str | None = Field(description="of the latest try")


_ASKED = {"device_id": "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "date": "2025-07-18", "time_block": "12-30"}
_DONE: dict[str, Any] = {
    "status": "success",
    "message": "タイムブロックの分析が完了しました",
    **_ASKED,
    "analysis_result": {"summary": "庭の話で笑い合っている", "vibe_score": 45, "behavior": "会話"},
    "database_save": True,
    "processed_at": "2025-07-18T04:02:11.532000+00:00",
    "model_used": "gpt-4.1-mini-2025-04-14",
}
_WAITING: dict[str, Any] = {
    **dict.fromkeys(_DONE),
    "status": "processing",
    "message": "分析中です。結果は status_url で確認できます",
    **_ASKED,
    "database_save": False,
    "state": "processing",
    "waits_for": [],
    "status_url": "/analyses/9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18/12-30",
    "error": None,
}
_MESSAGES = {
    "success": _DONE["message"],
    "processing": _WAITING["message"],
    "failed": "分析に失敗しました",
}


def _example(value: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


# --- the endpoints ----------------------------------------------------------------------------------------------------


@router.post(
    "/analyze-timeblock",
    response_model=Analysis,
    summary="Have a prompt answered",
    responses={
        200: _example(_DONE, "The verdict, which is in the table `dashboard` too"),
        202: {"model": AnalysisState, **_example(_WAITING, "It goes on: ask at `status_url`")},
        **errors(409, 413, 415, 422, 502),
    },
)
async def analyze(
    request: Request,
    began: Began,
    asked: AnalysisRequest,
    caller: Annotated[User, Depends(legacy("analyze"))],
    wait: Wait = None,
    prefer: Prefer = None,  # noqa: ARG001 - documented here; several lines of it are one
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",
            description="the same request with the same key is one request, for a day, however often it is sent",
        ),
    ] = None,
) -> Response:
    """Writes the prompt into `dashboard`, has it answered before other rows, and waits for the verdict.

    By default as long as a call to the model may take, at most `WEB_WAIT` (55 s), so that no proxy gives up before.
    What is not ready by then goes on, and the answer is 202. A block that waits or runs with this very prompt is not
    paid for twice.
    """
    state = state_of(request)
    values = asked.model_dump()
    digest = sha256(asked.prompt.encode()).hexdigest()
    told = await run_in_threadpool(_ask, state.services.database, values, caller.name, idempotency_key)
    if told["how"] == "mismatch":
        raise key_reused()
    if told["how"] == "shadow":
        raise Problem(503, phrase(503), SHADOW, code="shadow", headers={"Retry-After": str(RETRY_AFTER)})
    state.wakes.ask(SOURCE)
    timeout = told["timeout"] or state.settings.gpt.analysis_timeout.total_seconds()
    seconds, applied = patience(
        ",".join(request.headers.getlist("prefer")), wait, min(timeout, state.settings.web.web_wait.total_seconds())
    )
    left = began + seconds - time.monotonic()
    found = await state.analyses.until(request, {"key": told["key"], "prompt": digest}, settled, left)
    headers = {"Preference-Applied": applied} if applied else {}
    if found is not None and settled(found, time.monotonic() - began) and (problem := trouble(found)):
        raise problem
    if found is not None and found["state"] == "completed":
        return JSONResponse(_told(values, found), headers=headers)
    own = found or {"state": "pending", "why": [], "error": None, "result": None}
    where = {"Location": _status_url(request, values), "Retry-After": "5"}
    return JSONResponse(_state(request, values, own), 202, {**headers, **where})


@router.get(
    "/analyses/{device_id:path}/{date}/{time_block}",
    response_model=AnalysisState,
    summary="How a block gets on",
    responses={
        200: _example(
            {**_DONE, "state": "completed", "waits_for": [], "status_url": _WAITING["status_url"], "error": None},
            "Its state, whatever it is",
        ),
        **errors(404, 422),
    },
)
def analysis(
    request: Request,
    device_id: Annotated[Device, Path()],
    date: Annotated[Day, Path()],
    time_block: Annotated[Block, Path()],
    _caller: Annotated[User, Depends(any_of("analyze", "read", "operate"))],
) -> Response:
    """The last verdict on a block, or why there is none yet. Nothing is asked for."""
    values = {"device_id": device_id, "date": date, "time_block": time_block}
    state = state_of(request)
    zone = state.settings.audio.device_timezone
    try:
        (found,) = state.services.database.call("toban_analyses", **values, queue=QUEUE, zone=zone)["blocks"]
    except Refused as error:
        raise Problem(422, phrase(422), str(error), code="invalid") from error
    if found["state"] is None:
        raise Problem(404, phrase(404), "nobody has asked for this block")
    return JSONResponse(_state(request, values, found))


def waiting(services: Services, wakes: Wakes) -> Waiting:
    """For blocks: {key, prompt: SHA-256 of the prompt that is meant}."""
    zone = services.settings.audio.device_timezone

    def look(blocks: Sequence[State]) -> Sequence[State]:
        found: Sequence[State] = services.database.call("toban_analyses", blocks=list(blocks), queue=QUEUE, zone=zone)[
            "blocks"
        ]
        return found

    def seen(blocks: Sequence[State]) -> None:
        # Somebody else was claiming, or the queue was full: now it may be sent.
        if any(block["state"] == "pending" and not block["why"] for block in blocks):
            wakes.ask(SOURCE)

    return Waiting(look, seen)


def _ask(database: Database, values: Mapping[str, str], owner: str, key: str | None) -> dict[str, Any]:
    fingerprint = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    try:
        answer: dict[str, Any] = database.call(
            "toban_ask_analysis", **values, owner=owner, idempotency_key=key, fingerprint=fingerprint
        )
    except Refused as error:
        raise Problem(422, phrase(422), str(error), code="invalid") from error
    return answer


# --- what a state means -----------------------------------------------------------------------------------------------

# Of a failed item, by the outcome of its last call: what it was, and whose fault.
_FAILED: Mapping[str, int] = {"refusal": 422, "content_filter": 422, "rejected": 422, "truncated": 502}


def settled(found: State, seconds: float) -> bool:
    """Whether there is nothing to wait for, after waiting for `seconds`."""
    if found["state"] not in {"pending", "queued", "processing"} or not found["own"]:
        return True
    reason = blocked(found)
    return reason is not None and (reason["code"] != "no_worker" or seconds > GRACE)


def blocked(found: State) -> Mapping[str, Any] | None:
    """What keeps an item from being taken, and does not pass by itself in a moment."""
    for reason in found["why"]:
        if reason["code"] in {"shadow", "paused", "excluded", "no_worker"} or (
            reason["code"] == "held" and reason["incident"]
        ):
            return dict(reason)
    return None


def trouble(found: State) -> Problem | None:
    """The problem that a state is; None: the item is done, or goes on."""
    if found["state"] is None:
        return Problem(409, phrase(409), "the row was withdrawn: everything of it is gone", code="withdrawn")
    if not found["own"]:
        words = "another request has replaced this prompt while it waited; the block gets the verdict on the later one"
        return Problem(409, phrase(409), words, code="superseded")
    match found["state"]:
        case "failed":
            return _failed(found)
        case "skipped":
            return Problem(409, phrase(409), f"the row was withdrawn: {found['error']}", code="withdrawn")
        case "completed" if found["result"] is None:
            return Problem(409, phrase(409), "the row was completed elsewhere, without a verdict", code="withdrawn")
    reason = blocked(found)
    return _held(reason) if reason is not None else None


def _failed(found: State) -> Problem:
    outcome, kind = str(found["outcome"]), found["kind"]
    if kind == "permanent" and outcome in _FAILED:
        status, code = _FAILED[outcome], outcome
    elif kind == "permanent":
        status, code = 422, "failed"
    elif kind in {"bad_answer", "transient", "rate_limited"}:
        status, code = 502, "bad_answer" if kind == "bad_answer" else "model_unavailable"
    else:
        status, code = 500, "failed"
    return Problem(status, phrase(status), str(found["error"]), code=code)


def _held(reason: Mapping[str, Any]) -> Problem:
    after = RETRY_AFTER
    match reason["code"]:
        case "shadow":
            code, words = "shadow", SHADOW
        case "paused":
            code, words = "paused", f"the job {reason['job']} is paused"
        case "excluded":
            code = "excluded"
            words = f"the job's filter {reason['filter']} = {reason['value']} leaves this block out"
        case "held":
            code, words = str(reason["cause"]), str(reason["reason"])
            until = datetime.fromisoformat(reason["until"])
            after = max(1, round((until - datetime.now(UTC)).total_seconds()))
        case _:
            code, words = "no_worker", f"no worker listens to the queue {reason['queue']}"
    detail = f"{words}; the block waits, and is analysed when that is over"
    return Problem(503, phrase(503), detail, code=code, headers={"Retry-After": str(after)})


def _told(values: Mapping[str, str], found: State) -> dict[str, Any]:
    """The old answer."""
    status = {"completed": "success", "failed": "failed", "skipped": "failed"}.get(found["state"], "processing")
    result = found.get("result")
    verdict = {name: result.get(name) for name in Verdict.model_fields} if result else None
    return {
        "status": status,
        "message": _MESSAGES[status],
        **{name: values[name] for name in ("device_id", "date", "time_block")},
        "analysis_result": verdict,
        "database_save": verdict is not None,
        "processed_at": found.get("processed_at") if verdict else None,
        "model_used": result.get("model_used") if result else None,
    }


def _state(request: Request, values: Mapping[str, str], found: State) -> dict[str, Any]:
    return {
        **_told(values, found),
        "state": found["state"],
        "waits_for": waits_for(one for one in found["why"] if one["code"] != "full"),
        "status_url": _status_url(request, values),
        "error": found["error"],
    }


def _status_url(request: Request, values: Mapping[str, str]) -> str:
    parts = [quote(values[name], safe="") for name in ("device_id", "date", "time_block")]
    return link(request, f"/analyses/{'/'.join(parts)}")
