"""POST /api/monitor/job-report. What it takes and answers is in `app.monitor.report`; its secret is the sign-in."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from app.monitor.report import HEADER, handle
from app.web.rates import REPORTS, too_many
from app.web.state import state_of

router = APIRouter(tags=["monitor"])

_SECRET = APIKeyHeader(name=HEADER, auto_error=False, scheme_name="webhook", description="TC_PORTAL_WEBHOOK_SECRET")


class Report(BaseModel):
    """How a job ended; `running`: that it has started."""

    job_key: str = Field(min_length=1, examples=["nightly-backup"])
    title: str = Field(min_length=1, examples=["Nightly backup"])
    status: Literal["success", "error", "running"]
    finished_at: str | None = Field(
        None, description="ISO 8601; not of one that runs", examples=["2025-07-18T03:00:00Z"]
    )
    message: Any = Field(None, description="what is no text is kept as JSON", examples=["12 GB"])
    tool_id: UUID | Literal[""] | None = None
    run_id: Any = Field(None, description="pairs a start and its end")
    started_at: str | None = Field(None, description="ISO 8601")
    exit_code: int | None = None
    log: Any = Field(None, description="the end of its log")
    expect_every: str | float | None = Field(None, description="seconds, or like 90s, 15m, 24h, 1d", examples=["1d"])
    grace: str | float | None = Field(None, description="the same")
    fail_after: int | None = None


class Reported(BaseModel):
    success: Literal[True]
    id: str
    job_key: str


class OldError(BaseModel):
    """The failures of this route are TC Portal's."""

    error: str


def _error(description: str, words: str) -> dict[str, Any]:
    return {
        "model": OldError,
        "description": description,
        "content": {"application/json": {"example": {"error": words}}},
    }


@router.post(
    "/api/monitor/job-report",
    response_model=Reported,
    summary="Report how a job outside ended",
    responses={
        400: _error("Something is missing or can't be read", "job_key is required"),
        401: _error("The secret is not the one", "Invalid or missing webhook secret"),
        413: _error("More than 256 KiB", "Request body too large"),
        429: _error("More than 240 a minute from one address", "Too many requests from this address."),
        500: _error("No secret is set here, or the database does not answer", "Failed to update job status"),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": Report.model_json_schema()}},
        }
    },
)
async def job_report(request: Request, _: Annotated[str | None, Security(_SECRET)] = None) -> Response:
    """As the old portal took it; see docs/monitor.md for what may be told beside that."""
    state = state_of(request)
    if not state.rates.count(REPORTS, request):
        raise too_many(REPORTS)
    secret = state.settings.portal.webhook_secret
    body = await request.body()
    status, answer = await run_in_threadpool(handle, state.services.database, secret, request.headers, body)
    return JSONResponse(answer, status)
