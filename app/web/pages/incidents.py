"""/incidents: what is broken, and why."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.web.render import render
from app.web.state import state_of

router = APIRouter()


@router.get("/incidents")
def incidents(request: Request) -> Response:
    database = state_of(request).services.database
    status = database.call("toban_status", failed=50)
    others = database.call("toban_other_incidents")["incidents"]
    jobs = [job for job in status["jobs"] if job["last_status"] == "error"]
    return render(request, "incidents.html", jobs=jobs, others=others, failed=status["failed"])
