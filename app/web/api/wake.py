"""POST /wake/{source}: a webhook of the database says that rows have begun to wait. Its secret is the sign-in."""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, Field, SecretStr
from starlette.concurrency import run_in_threadpool

from app.sources import load_sources, registry
from app.web.api.problems import Problem, errors
from app.web.rates import BAD_TOKENS
from app.web.state import State, state_of

router = APIRouter(tags=["wake"])

HEADER = "x-toban-wake-secret"
# How far a signature's moment may be from now, seconds, as Standard Webhooks recommends.
TOLERANCE = 300
# How long a request waits for its look, and when a caller whose look failed may try again, seconds.
PATIENCE, RETRY_AFTER = 4.0, "10"

UNAUTHORIZED = (
    "send WAKE_SECRET as `Authorization: Bearer …` or `X-Toban-Wake-Secret: …`, or sign with it after Standard Webhooks"
)
NO_SUCH = "there is no such source; the sources are"
AWAY = "the broker or the database can't be used at the moment; nothing is lost: the row waits for the next tick"
# What Supabase sends. Nothing of it is read, so nothing of it has to be true.
EXAMPLE = {
    "type": "INSERT",
    "table": "audio_files",
    "schema": "public",
    "record": {"device_id": "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "transcriptions_status": "pending"},
    "old_record": None,
}


class Woken(BaseModel):
    """Somebody looks, or will within a second."""

    source: str = Field(examples=["transcription"])
    woken: bool = Field(True, description="always true")
    sent: int | None = Field(
        description="rows that this request's own look sent to workers; null where it went along with another's",
        examples=[1],
    )
    reason: str | None = Field(
        None, description="why its look sent none", examples=["the queue is full", "no worker listens to whisper"]
    )


@router.post(
    "/wake/{source}",
    status_code=202,
    # Only for the OpenAPI document: `_check` takes any of three ways.
    dependencies=[
        Depends(APIKeyHeader(name="X-Toban-Wake-Secret", scheme_name="WakeSecret", auto_error=False)),
        Depends(HTTPBearer(scheme_name="WakeBearer", description="WAKE_SECRET", auto_error=False)),
    ],
    responses=errors(401, 404, 413, 429, 503, common=(), _401=UNAUTHORIZED, _404=f"{NO_SUCH} transcription", _503=AWAY),
    openapi_extra={
        "requestBody": {
            "description": "Whatever the webhook sends, such as Supabase's; it is not read. At most 1 MiB.",
            "content": {"application/json": {"schema": {}, "example": EXAMPLE}},
        },
    },
)
async def wake(request: Request, source: Annotated[str, Path(examples=["transcription"])]) -> Woken:
    """Claim for rows that have just begun to wait, instead of at the next tick.

    Send `WAKE_SECRET` as `Authorization: Bearer …` or `X-Toban-Wake-Secret: …`, or sign with it after Standard Webhooks
    (`webhook-id`, `webhook-timestamp`, `webhook-signature`). Requests for a source that come together share a look, so
    one for each row of a large insert does no harm.
    """
    state = state_of(request)
    await _check(state, request)
    await run_in_threadpool(load_sources, state.settings.ledger)
    known = registry.dispatched()
    if source not in known:
        raise Problem(404, "Not Found", f"{NO_SUCH} {', '.join(sorted(known))}", code="unknown_source")
    here, mine = state.wakes.ask(source)
    if not mine:
        if here.failing:
            raise _away()
        return Woken(source=source, sent=None)
    try:
        done = await asyncio.wait_for(asyncio.shield(here.first), PATIENCE)
    except TimeoutError:  # the look goes on
        return Woken(source=source, sent=None)
    if done is None:
        raise _away()
    return Woken(source=source, sent=done.dispatched, reason=None if done.dispatched else done.reason)


def _away() -> Problem:
    return Problem(503, "Service Unavailable", AWAY, code="away", headers={"Retry-After": RETRY_AFTER})


async def _check(state: State, request: Request) -> None:
    """Raises `Problem` unless the request knows the secret."""
    secret = state.settings.web.wake_secret
    if secret is None:
        detail = "nobody can be woken here: set WAKE_SECRET, and send it along"
        raise Problem(404, "Not Found", detail, code="no_secret")
    state.rates.check(BAD_TOKENS, request)
    # Read in any case: what is left unread would end the connection. More than 1 MiB is refused on the way.
    body = await request.body()
    if not (_shown(secret, request.headers) or _signed(secret, request.headers, body)):
        state.rates.count(BAD_TOKENS, request)
        raise Problem(401, "Unauthorized", UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})


def _shown(secret: SecretStr, headers: Mapping[str, str]) -> bool:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get(HEADER, "")
    return _same(given, secret.get_secret_value())


def _signed(secret: SecretStr, headers: Mapping[str, str], body: bytes) -> bool:
    """Source: Standard Webhooks, "Verifying webhook authenticity": HMAC-SHA256 over `id.timestamp.body`, in base64.

    One of several signatures (`v1,… v1,…`) is enough.
    """
    moment = headers.get("webhook-timestamp", "")
    if not moment.isascii() or not moment.isdecimal() or abs(time.time() - int(moment[:15])) > TOLERANCE:
        return False
    told = f"{headers.get('webhook-id', '')}.{moment}.".encode() + body
    right = "v1," + base64.b64encode(hmac.digest(signing_key(secret), told, sha256().name)).decode()
    return any(_same(one, right) for one in headers.get("webhook-signature", "").split())


def signing_key(secret: SecretStr) -> bytes:
    """The key's bytes: of `whsec_…` what is behind it in base64, of any other text the text itself."""
    text = secret.get_secret_value().removeprefix("v1,")
    if text.startswith("whsec_"):
        try:
            return base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.get_secret_value().encode()


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())
