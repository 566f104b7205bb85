"""/workers: who is alive, with how much memory, at what."""

import structlog
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from kombu.exceptions import OperationalError

from app.web.auth import Operator
from app.web.i18n import t
from app.web.pages.common import Json, Text, back, call, note
from app.web.render import render

log = structlog.get_logger("toban.web")
router = APIRouter()
HERE = "/workers"


@router.get(HERE)
def workers(request: Request, done: str = "") -> Response:
    found = call(request, "toban_page_workers")
    nodes: dict[str, list[Json]] = {}
    for worker in found.pop("workers"):
        nodes.setdefault(worker["node"], []).append(worker)
    return render(request, "workers.html", **found, nodes=nodes, note=note(done))


@router.post(f"{HERE}/stop")
def stop(request: Request, user: Operator, node: Text) -> Response:
    """A warm shutdown by Celery's remote control: what runs may finish within its grace, then it is given back."""
    known = {worker["node"] for worker in call(request, "toban_page_workers")["workers"] if worker["alive"]}
    if node not in known:
        raise HTTPException(404, t("There is no such worker any more."))
    _shut_down(node.rpartition("/")[0] or node)
    call(request, "toban_note_stop", node=node, who=user.name)
    return back(HERE, HERE, "stopping")


def _shut_down(name: str) -> None:
    """`name`: the Celery worker's, as `whisper@host`."""
    from app.celery import app

    try:
        app.control.shutdown(destination=[name])
    except (OperationalError, OSError) as error:
        log.warning("web.stop_failed", node=name, reason=str(error))
        raise HTTPException(503, t("The broker does not answer, so nobody was asked to stop.")) from error
