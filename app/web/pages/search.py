"""/search: what was said, found in all transcripts."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from markupsafe import Markup, escape

from app.web.pages.common import call
from app.web.render import render

router = APIRouter()


@router.get("/search")
def search(
    request: Request,
    q: Annotated[str, Query(max_length=200)] = "",
    device: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    words = q.split()
    found, more = [], False
    if words:
        answer = call(request, "toban_page_search", words=words, **({"device": device} if device else {}))
        found, more = answer["found"], answer["more"]
    return render(request, "search.html", q=q, asked=words, device=device, found=found, more=more)


def highlighted(text: str, words: list[str]) -> Markup:
    """`text` with `words` marked, whatever their case."""
    folded = text.lower()
    if len(folded) != len(text):
        return escape(text)
    spans = sorted(
        (at, at + len(word)) for word in {word.lower() for word in words if word} for at in _places(folded, word)
    )
    parts, end = [], 0
    for start, stop in spans:
        if start >= end:
            parts.append(escape(text[end:start]) + Markup("<mark>{}</mark>").format(text[start:stop]))
            end = stop
    return Markup("").join([*parts, escape(text[end:])])


def _places(text: str, word: str) -> list[int]:
    places, at = [], text.find(word)
    while at >= 0:
        places.append(at)
        at = text.find(word, at + len(word))
    return places
