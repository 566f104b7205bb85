"""/incidents: what is broken, why, since when, and what to press."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.web.auth import Operator
from app.web.pages.common import Text, back, call, jobs, note
from app.web.render import render
from app.web.state import state_of

router = APIRouter()
HERE = "/incidents"


@router.get(HERE)
def incidents(request: Request, done: str = "") -> Response:
    found = call(request, "toban_incidents")
    return render(
        request,
        "incidents.html",
        **found,
        groups=[
            (name, [one for one in found["incidents"] if (one["kind"] if one["kind"] in GROUPED else "other") == name])
            for name in (*GROUPED, "other")
        ],
        timetable=jobs(),
        flower=state_of(request).settings.web.flower,
        note=note(done),
    )


# In the order in which they matter; everything else comes last.
GROUPED = ("job", "items", "overdue")


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
