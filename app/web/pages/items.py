"""/work/{source}/{key}: one item, and why it still waits."""

from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import tracing
from app.web.pages.common import Json, call, device_zone, note, path, queues
from app.web.pages.recordings import moment_of
from app.web.render import render, url
from app.web.state import state_of

router = APIRouter()


@router.get("/work/{source}/{key:path}")
def item(request: Request, source: str, key: str, done: str = "") -> Response:
    found = call(
        request,
        "toban_page_item",
        source=source,
        key=key,
        queue=queues().get(source, "default"),
        zone=device_zone(request).key,
    )
    asked = found["item"]["params"]
    found["item"]["params"] = {name: asked[name] for name in asked if name not in {tracing.PARENT, tracing.EARLIER}}
    return render(
        request,
        "item.html",
        attempts_list=found.pop("attempts"),
        **found,
        recording=_recording(request, found["item"]),
        flower=state_of(request).settings.web.flower,
        note=note(done),
    )


def _recording(request: Request, item: Json) -> str | None:
    """Where the day of a recording shows it."""
    if item["source"] != "transcription" or not item["at"]:
        return None
    day = datetime.fromisoformat(item["at"]).astimezone(device_zone(request)).date()
    return url(path("days", item["partition"], str(day)), at=moment_of(item["at"])) + "#recording"
