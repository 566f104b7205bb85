"""What the answers of both old endpoints have in common."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Request

from app.web.api.problems import Problem, phrase
from app.web.pages.words import why
from app.web.reader import reader
from app.web.state import state_of


def link(request: Request, path: str) -> str:
    """Where `path` is: with the address that the settings name, else with the path that a proxy cuts off."""
    base = state_of(request).settings.web.web_base_url
    return f"{base.rstrip('/') if base else reader().root}{path}"


def waits_for(reasons: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The ledger's reasons why something waits, as `Reason`s."""
    return [{"code": one["code"], "detail": why(one).striptags()} for one in reasons]


def key_reused() -> Problem:
    """An Idempotency-Key came with something else before."""
    words = "this Idempotency-Key was used for another request; take a new one"
    return Problem(422, phrase(422), words, code="idempotency_key_reused")
