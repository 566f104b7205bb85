"""/work: every source and state; /work/{source}: its items."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from app.health import in_use
from app.web.i18n import t
from app.web.pages.common import call, modes, note, queues
from app.web.pages.words import STATES
from app.web.render import render

router = APIRouter()
PAGE = 50  # items


@router.get("/work")
def work(request: Request, done: str = "") -> Response:
    found = call(request, "toban_page_work", queues=queues())
    found["sources"] = in_use(found["sources"], ["states"])
    return render(request, "work.html", **found, modes=modes(request), states=STATES, note=note(done))


@router.get("/work/{source}")
def items(
    request: Request,
    source: str,
    state: str = "",
    q: Annotated[str, Query(max_length=200)] = "",
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    done: str = "",
) -> Response:
    if state and state not in STATES:
        raise HTTPException(404, t("There is no such page."))
    found = call(
        request,
        "toban_page_items",
        source=source,
        **({"state": state} if state else {}),
        q=q.strip(),
        skip=(page - 1) * PAGE,
        limit=PAGE,
    )
    return render(
        request,
        "items.html",
        **found,
        source=source,
        states=STATES,
        wanted_state=state,
        q=q.strip(),
        page=page,
        note=note(done),
    )
