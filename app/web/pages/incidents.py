"""/incidents: what is broken, why, since when, and what to press."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.web.auth import Operator
from app.web.pages.common import Json, Text, back, call, jobs, note
from app.web.render import render
from app.web.state import state_of

router = APIRouter()
HERE = "/incidents"


# In the order in which they matter; everything else comes last.
GROUPS = ("job", "items", "overdue", "other")
# What an answer leaves out where there is nothing to say.
_ABSENT: Json = {"job_key": None, "source": None, "reason": None, "log_tail": None, "items": [], "dismissed_by": None}


@router.get(HERE)
def incidents(request: Request, done: str = "") -> Response:
    found = call(request, "toban_incidents")
    groups: dict[str, list[Json]] = {name: [] for name in GROUPS}
    for one in found["incidents"]:
        groups[one["kind"] if one["kind"] in GROUPS else "other"].append(_ABSENT | one)
    return render(
        request,
        "incidents.html",
        groups=groups,
        recovered=[_ABSENT | one for one in found["recovered"]],
        channels=found["channels"],
        looked_at=found["looked_at"],
        timetable=jobs(),
        flower=state_of(request).settings.web.flower,
        note=note(done),
    )


@router.post(f"{HERE}/retry")
def retry(request: Request, user: Operator, source: Text, key: Text, next: Text = HERE) -> Response:  # noqa: A002 - the field's name
    call(request, "toban_retry_items", source=source, keys=[key], who=user.name)
    return back(next, HERE, "retried")


@router.post(f"{HERE}/retry-reason")
def retry_reason(request: Request, user: Operator, source: Text, fingerprint: Text, next: Text = HERE) -> Response:  # noqa: A002
    answer = call(request, "toban_retry_reason", source=source, fingerprint=fingerprint, who=user.name)
    return back(next, HERE, "retried-part" if answer["more"] else "retried-all")


@router.post(f"{HERE}/dismiss")
def dismiss(
    request: Request,
    user: Operator,
    incident: Text = "",
    source: Text = "",
    key: Text = "",
    next: Text = HERE,  # noqa: A002
) -> Response:
    which: dict[str, object] = {"incident": incident} if incident.isdecimal() else {"source": source, "key": key}
    call(request, "toban_dismiss", **which, who=user.name)
    return back(next, HERE, "dismissed")
