"""POST /api/monitor/job-report. What it takes and answers is in `app.monitor.report`; its secret is the sign-in."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app.monitor.report import handle
from app.web.rates import REPORTS, too_many
from app.web.state import state_of

router = APIRouter()


@router.post("/api/monitor/job-report")
async def job_report(request: Request) -> Response:
    state = state_of(request)
    if not state.rates.count(REPORTS, request):
        raise too_many(REPORTS)
    secret = state.settings.portal.webhook_secret
    body = await request.body()
    status, answer = await run_in_threadpool(handle, state.services.database, secret, request.headers, body)
    return JSONResponse(answer, status)
