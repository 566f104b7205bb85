"""/jobs: each job's state and runs; /jobs/{job}: its history, its settings, and who changed them."""

import re
from typing import Any
from zoneinfo import available_timezones

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from app.errors import Permanent
from app.web.auth import Operator
from app.web.i18n import t
from app.web.pages.common import Json, Text, back, call, modes, note, path
from app.web.pages.common import jobs as timetable
from app.web.render import render

router = APIRouter()

_UNITS = {"s": 1, "sec": 1, "秒": 1, "m": 60, "min": 60, "分": 60, "h": 3600, "時間": 3600, "d": 86400, "日": 86400}


def states(request: Request, runs: int) -> Json:
    found: Json = call(request, "toban_job_states", timetable=timetable(), runs=runs)
    return found


@router.get("/jobs")
def jobs(request: Request, done: str = "") -> Response:
    found = states(request, 1)
    return render(request, "jobs.html", **found, modes=modes(request), note=note(done))


@router.get("/jobs/{job:path}")
def job(request: Request, job: str, done: str = "") -> Response:
    return _page(request, job, note=note(done))


@router.post("/jobs/run")
def run(request: Request, user: Operator, job: Text, next: Text = "") -> Response:  # noqa: A002 - the field's name
    call(request, "toban_run_now", job=job, who=user.name)
    return back(next, path("jobs", job), "wanted")


@router.post("/jobs/pause")
def pause(request: Request, user: Operator, job: Text, paused: Text, next: Text = "") -> Response:  # noqa: A002
    call(request, "toban_pause", job=job, paused=paused == "yes", who=user.name)
    return back(next, path("jobs", job), "paused" if paused == "yes" else "resumed")


@router.post("/jobs/forget")
def forget(request: Request, user: Operator, job: Text) -> Response:
    call(request, "toban_forget_job", job_key=job, who=user.name)
    return back("", "/jobs", "forgotten")


@router.post("/jobs/edit")
def edit(
    request: Request,
    user: Operator,
    job: Text,
    every: Text = "",
    at: Text = "",
    zone: Text = "",
    batch_limit: Text = "",
    device: Text = "",
    date: Text = "",
    timeout: Text = "",
) -> Response:
    """What is empty is taken away, where it may be missing."""
    typed = {
        "every": every, "at": at, "zone": zone, "batch_limit": batch_limit, "device": device, "date": date,
        "timeout": timeout,
    }  # fmt: skip
    try:
        changes = {
            "every": seconds(every),
            "at": clock(at),
            "zone": zone.strip(),
            "batch_limit": int(batch_limit) if batch_limit.strip() else None,
            "timeout": seconds(timeout) if timeout.strip() else None,
            "filters": {"partition": device.strip() or None, "date": date.strip() or None},
        }
        call(request, "toban_edit_job", job=job, **changes, who=user.name)
    except ValueError as error:
        return _page(request, job, typed=typed, error=str(error), status=400)
    except Permanent as error:
        # The database says in words what does not fit.
        words = str(error)
        if f"job {job}: " not in words:
            raise
        return _page(request, job, typed=typed, error=words.partition(f"job {job}: ")[2], status=400)
    return back("", path("jobs", job), "saved")


@router.post("/jobs/watch")
def watch(
    request: Request, user: Operator, job: Text, every: Text = "", grace: Text = "", fail_after: Text = ""
) -> Response:
    """What is expected of a job outside."""
    typed = {"every": every, "grace": grace, "fail_after": fail_after}
    try:
        changes = {
            "every": seconds(every) if every.strip() else None,
            "grace": seconds(grace) if grace.strip() else None,
            "fail_after": int(fail_after) if fail_after.strip() else None,
        }
    except ValueError as error:
        return _page(request, job, typed=typed, error=str(error), status=400)
    call(request, "toban_edit_watch", job_key=job, **changes, who=user.name)
    return back("", path("jobs", job), "saved")


def _page(
    request: Request,
    job: str,
    *,
    typed: Json | None = None,
    error: str | None = None,
    status: int = 200,
    **more: Any,  # noqa: ANN401 - for the template
) -> Response:
    found = states(request, 20)
    shown = next((one for one in found["jobs"] if one["job_key"] == job), None)
    if shown is None:
        raise HTTPException(404, t("There is no job {job}.", job=job))
    return render(
        request,
        "job.html",
        status=status,
        now=found["now"],
        job=shown,
        mode=modes(request).get(job, {}),
        fields=typed or _fields(shown["settings"]),
        error=error,
        zones=sorted(available_timezones()),
        audit=call(request, "toban_audited", target=job, limit=20)["entries"],
        **{"note": None, **more},
    )


def _fields(settings: Json) -> dict[str, str]:
    """A job's settings as they are typed."""
    filters = settings.get("filters") or {}
    return {
        "every": span(settings["every"]),
        "at": wall(settings.get("at") or 0),
        "zone": settings.get("zone") or "",
        "batch_limit": str(settings.get("batch_limit") or ""),
        "device": filters.get("partition", ""),
        "date": filters.get("date", ""),
        "timeout": span(settings.get("timeout")),
        "grace": span(settings.get("grace")),
        "fail_after": str(settings.get("fail_after") or ""),
    }


def seconds(text: str) -> float:
    """`90`, `90 s`, `10 min`, `1 h 30 min`, `1 d`, `10分`. Raises `ValueError` in words."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+|秒|分|時間|日)?", text.strip().lower())
    whole = re.sub(r"\s+", "", text.strip().lower())
    if (
        not parts
        or "".join(f"{number}{unit}" for number, unit in parts) != whole
        or any(unit and unit not in _UNITS for _, unit in parts)
    ):
        raise ValueError(t("“{text}” is no length of time; write it as 30 s, 10 min, 1 h 30 min or 1 d", text=text))
    return float(sum(float(number) * _UNITS[unit or "s"] for number, unit in parts))


def clock(text: str) -> float:
    """`03:00` or `00:10:30` as seconds; "" is 0. Raises `ValueError` in words."""
    if not text.strip():
        return 0
    found = re.fullmatch(r"(\d{1,3}):([0-5]\d)(?::([0-5]\d))?", text.strip())
    if not found:
        raise ValueError(t("“{text}” is no time; write it as 03:00 or 00:10:30", text=text))
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest


def span(value: float | None) -> str:
    """Seconds as `seconds()` reads them: `1 h 30 min`."""
    if value is None:
        return ""
    left, parts = float(value), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if left >= size:
            parts.append(f"{int(left // size)} {unit}")
            left %= size
    return " ".join([*parts, f"{left:g} s"] if left or not parts else parts)


def wall(value: float) -> str:
    """Seconds as `clock()` reads them."""
    whole = int(value)
    text = f"{whole // 3600:02}:{whole // 60 % 60:02}"
    return text + (f":{whole % 60:02}" if whole % 60 else "")
