"""/days: devices; /days/{device}/{date}: a day's 48 slots over its curve, and one recording of it."""

from dataclasses import dataclass, field
from datetime import date as calendar_date
from datetime import datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from babel.dates import format_date
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from app.speech.transcribe import time_block
from app.web.i18n import t
from app.web.pages.common import Json, call, device_zone, note, path
from app.web.pages.drawing import BLOCKS, curve
from app.web.pages.recordings import origins, parsed
from app.web.pages.words import share
from app.web.reader import reader
from app.web.render import redirect, render
from app.web.state import state_of

router = APIRouter()

# Of several recordings in a slot the one that most needs a person is shown.
_WORST = ("failed", "processing", "queued", "pending", "completed", "skipped")
CURVE = (960, 120)  # the drawing's own units


@dataclass
class Slot:
    """Half an hour of a day: what was recorded in it, what was said, and how it was felt."""

    block: str
    recordings: list[Json] = field(default_factory=list)
    analysis: Json | None = None
    words: str = ""

    @property
    def time(self) -> str:
        return self.block.replace("-", ":")

    @property
    def shown(self) -> Json | None:
        """The recording that stands for the slot."""
        return min(self.recordings, key=lambda one: _WORST.index(state_of_recording(one)), default=None)

    @property
    def state(self) -> str:
        return state_of_recording(self.shown) if self.shown else "nothing"

    @property
    def share(self) -> float | None:
        item = self.shown and self.shown["item"]
        return share(item["progress"]) if item and item["state"] == "processing" else None


def state_of_recording(recording: Json) -> str:
    """Its item's state; of one that was done before there were items, what its row says."""
    if recording["item"]:
        return str(recording["item"]["state"])
    status = recording["status"]
    return status if status in _WORST else "pending"


@router.get("/days")
def devices(request: Request) -> Response:
    found = call(request, "toban_page_devices", zone=device_zone(request).key)
    return render(request, "devices.html", **found)


@router.get("/days/{device}")
def latest(request: Request, device: str, date: str = "") -> Response:
    """The day that was asked for by a form, else the last one with recordings."""
    if date:
        return redirect(path("days", device, str(_day(date))))
    today = datetime.now(device_zone(request)).date()
    found = call(request, "toban_page_day", device=device, date=str(today), zone=device_zone(request).key)
    return redirect(path("days", device, str(today) if found["recordings"] else found["before"] or str(today)))


@router.get("/days/{device}/{date}")
def day(
    request: Request,
    device: str,
    date: str,
    at: Annotated[str, Query(max_length=40)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    start: Annotated[float, Query(alias="t", ge=0)] = 0,
    done: str = "",
) -> Response:
    """`at`: the chosen recording's moment; `t`: where in it to begin, seconds; `q`: words to mark."""
    zone = device_zone(request)
    shown = _day(date)
    found = call(request, "toban_page_day", device=device, date=str(shown), zone=zone.key)
    slots = _slots(found, zone)
    chosen = call(request, "toban_page_recording", device=device, at=parsed(at), zone=zone.key) if at else None
    scores = {
        slot.block: float(slot.analysis["vibe_score"])
        for slot in slots
        if slot.analysis and slot.analysis["vibe_score"] is not None
    }
    return render(
        request,
        "day.html",
        media=origins(request) if chosen else (),
        device=device,
        day=shown,
        previous=found["before"] or str(shown - timedelta(days=1)),
        following=found["after"] or str(shown + timedelta(days=1)),
        today=found["today"],
        day_words=format_date(shown, "full", locale=reader().language),
        slots=slots,
        counts={state: n for state in (*_WORST, "nothing") if (n := sum(slot.state == state for slot in slots))},
        cost=found["cost"],
        curve=curve(scores, *CURVE),
        size=CURVE,
        chosen=chosen,
        start=start,
        q=q,
        marked=q.split(),
        sound=_has_sound(request),
        state_of_recording=state_of_recording,
        note=note(done),
    )


def _has_sound(request: Request) -> bool:
    audio = state_of(request).settings.audio
    return audio.audio_folder is not None or audio.s3_bucket_name is not None


def _slots(found: Json, zone: ZoneInfo) -> list[Slot]:
    slots = {block: Slot(block) for block in BLOCKS}
    for recording in found["recordings"]:
        _, block = time_block(datetime.fromisoformat(recording["recorded_at"]), zone)
        slots[block].recordings.append(recording)
    for analysis in found["analyses"]:
        if analysis["time_block"] in slots:
            slots[analysis["time_block"]].analysis = analysis
    for block, words in found["words"].items():
        if block in slots:
            slots[block].words = words or ""
    return list(slots.values())


def _day(text: str) -> calendar_date:
    try:
        day = calendar_date.fromisoformat(text)
    except ValueError:
        raise HTTPException(404, t("There is no day {day}.", day=text)) from None
    if not 1970 <= day.year <= 2999:
        raise HTTPException(404, t("There is no day {day}.", day=text))
    return day
