"""POST /wake/{source}: a webhook of the database has rows claimed at once."""

import base64
import hmac
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
import redis

from app.celery import app as celery
from app.ledger import Claim
from app.settings import Web
from tests.support.servers import Redis, free_port, wait_for
from tests.support.web import Site

OpenSite = Callable[..., Site]

SECRET = "a-secret-of-the-webhook-that-is-long-enough"
BODY = {"type": "INSERT", "table": "audio_files", "schema": "public", "record": {"file_path": "whispered-words"}}


@pytest.fixture
def site(open_site: OpenSite, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Site:
    use_broker(monkeypatch, redis_server.url)
    return open_site(wake_secret=SECRET, broker=redis_server.url)


def use_broker(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(celery.conf, "broker_url", url)
    monkeypatch.setattr(celery, "_pool", None)
    monkeypatch.setattr(celery.amqp, "_producer_pool", None)


def wake(site: Site, source: str = "transcription", **headers: str) -> httpx.Response:
    headers = headers or {"authorization": f"Bearer {SECRET}"}
    return httpx.post(f"{site.address}/wake/{source}", json=BODY, headers=headers, timeout=20)


def insert(site: Site, count: int = 1, slots: int = 1) -> None:
    site.services.database.call(
        "toban_heartbeat", worker="w", node="w", pid=1, queues=["whisper"], slots=slots, rss_bytes=1, lease=600,
        stall=300, items=[],
    )  # fmt: skip
    url = site.services.settings.database.database_url
    assert url
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        connection.execute(
            "insert into audio_files select 'd', now() - i * interval '1 min', 'a.wav', 'pending'"
            " from generate_series(1, %s) i",
            [count],
        )


def states(site: Site) -> dict[str, int]:
    answer = site.services.database.call("toban_status")["sources"]
    (source,) = [one for one in answer if one["source"] == "transcription"]
    return {state: source[state] for state in ("pending", "queued") if source[state]}


def test_a_row_is_sent(site: Site, redis_server: Redis) -> None:
    insert(site)
    answer = wake(site)
    assert answer.status_code == 202
    assert answer.json() == {"source": "transcription", "woken": True, "sent": 1, "reason": None}
    with redis.Redis(port=redis_server.port) as client:
        assert client.llen("whisper") == 1
        assert client.pubsub_channels() == [], "nobody waits for its result"


def test_every_way_to_show_the_secret(site: Site) -> None:
    assert wake(site, authorization=f"bearer  {SECRET}").status_code == 202
    assert wake(site, **{"X-Toban-Wake-Secret": SECRET}).status_code == 202
    body = b'{"anything": "at all"}'

    def signed(moment: int, secret: bytes = SECRET.encode(), sent: bytes = body) -> int:
        digest = hmac.digest(secret, f"msg_1.{moment}.".encode() + body, "sha256")
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(moment),
            "webhook-signature": f"v1,AAAA v1,{base64.b64encode(digest).decode()}",
        }
        return httpx.post(f"{site.address}/wake/transcription", content=sent, headers=headers).status_code

    now = int(time.time())
    assert signed(now) == 202
    assert signed(now - 600) == 401, "too old"
    assert signed(now, b"another-secret") == 401
    assert signed(now, sent=body + b" ") == 401, "another body"


def test_a_key_in_base64_signs_as_standard_webhooks_has_it(open_site: OpenSite) -> None:
    key = b"0123456789abcdef0123456789abcdef"
    site = open_site(wake_secret=f"whsec_{base64.b64encode(key).decode()}")
    moment = int(time.time())
    digest = base64.b64encode(hmac.digest(key, f"m.{moment}.".encode(), "sha256")).decode()
    headers = {"webhook-id": "m", "webhook-timestamp": str(moment), "webhook-signature": f"v1,{digest}"}
    assert httpx.post(f"{site.address}/wake/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {SECRET}"},
        {"x-toban-wake-secret": SECRET[:-1]},
        {"x-toban-wake-secret": ""},
        {"webhook-id": "m", "webhook-timestamp": "9" * 400, "webhook-signature": "v1,"},
        {"webhook-id": "m", "webhook-timestamp": "²", "webhook-signature": "v1,"},
    ],
)
def test_a_wrong_secret_wakes_nobody(site: Site, headers: dict[str, str]) -> None:
    insert(site)
    raw = [(name.encode(), text.encode()) for name, text in headers.items()]
    answer = httpx.post(f"{site.address}/wake/transcription", json=BODY, headers=raw)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert SECRET not in answer.text
    assert states(site) == {"pending": 1}


def test_guessing_is_slowed(site: Site) -> None:
    answers = [wake(site, authorization="Bearer wrong").status_code for _ in range(25)]
    assert set(answers) == {401, 429}
    assert answers[-1] == 429


def test_without_a_secret_nobody_is_woken(open_site: OpenSite) -> None:
    answer = wake(open_site())
    assert answer.status_code == 404
    assert "WAKE_SECRET" in answer.json()["detail"]


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="wake_secret"):
        Web(wake_secret="short")


def test_an_unknown_source(site: Site) -> None:
    answer = wake(site, "nothing")
    assert answer.status_code == 404
    assert answer.json()["title"] == "Not Found"
    assert "transcription" in answer.json()["detail"]
    assert wake(site, "nothing", authorization="Bearer wrong").status_code == 401, "strangers learn nothing"


def test_a_body_that_is_too_large(site: Site) -> None:
    headers = {"authorization": f"Bearer {SECRET}"}
    answer = httpx.post(f"{site.address}/wake/transcription", content=b"x" * (1 << 20) + b"x", headers=headers)
    assert answer.status_code == 413


def test_a_storm_is_a_few_looks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[object] = []
    claim = site.services.ledger.claim

    def counted(*arguments: Any) -> Claim:
        claims.append(arguments)
        return claim(*arguments)

    monkeypatch.setattr(site.services.ledger, "claim", counted)
    insert(site, 40, slots=4)
    headers = {"authorization": f"Bearer {SECRET}"}
    with ThreadPoolExecutor(10) as pool, httpx.Client(base_url=site.address, headers=headers, timeout=30) as client:
        answers = list(pool.map(lambda _: client.post("/wake/transcription", json=BODY), range(200)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum(answer.json()["sent"] or 0 for answer in answers) == 8
    assert len(claims) < 50
    # The last one of them was not forgotten: a look follows it.
    url = site.services.settings.database.database_url
    assert url
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        connection.execute("update workers set slots = 20")
    wake(site)
    wait_for(lambda: states(site) == {"queued": 40}, "the look after the last request")


def test_the_broker_is_away(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    use_broker(monkeypatch, f"redis://127.0.0.1:{free_port()}/0")
    insert(site)
    with caplog.at_level(logging.DEBUG):
        for answer in (wake(site), wake(site)):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "10"
            assert "nothing is lost" in answer.json()["detail"]
    assert states(site) == {"pending": 1}
    assert "whispered-words" not in caplog.text
    assert SECRET not in caplog.text
