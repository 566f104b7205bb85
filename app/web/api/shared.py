"""What both old endpoints have in common."""

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from fastapi import Request

from app.web.api.problems import Problem, phrase
from app.web.i18n import t
from app.web.pages.words import why
from app.web.reader import reader
from app.web.state import state_of


def day(value: object) -> date:
    """The day that a request names, for pydantic: raises `ValueError` with the remedy."""
    if isinstance(value, date):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
        raise ValueError(t("write it as YYYY-MM-DD, such as 2025-07-18"))
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(t("there is no such day; write it as YYYY-MM-DD")) from None


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
