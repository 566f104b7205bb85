"""/work/{source}/{key}: one item, and why it still waits."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.web.pages.common import call, device_zone, note, queues
from app.web.render import render
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
    return render(
        request,
        "item.html",
        **found,
        flower=state_of(request).settings.web.flower_url,
        note=note(done),
    )
