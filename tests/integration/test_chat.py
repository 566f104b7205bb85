"""Calls over real sockets to a server that answers well, badly, or not at all."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest

from app.errors import Halted, LeaseLost, RateLimited
from app.gpt.answers import Completion
from app.gpt.chat import Chat, build_chat
from app.gpt.failures import CallFailed, Usage
from app.gpt.verdict import SCHEMA, BadVerdict, parse
from app.settings import Gpt
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.servers import free_port

MODEL = "gpt-4.1-mini"
PROMPT = "Hanako said hunter2 to 太郎. How was it?"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as server:
        yield server


@pytest.fixture
def chat(server: OpenAIServer) -> Iterator[Chat]:
    chat = Chat(server.url, KEY, SCHEMA)
    yield chat
    chat.close()


def ask(chat: Chat, prompt: str = PROMPT, seconds: float = 30) -> Completion:
    timeout = timedelta(seconds=seconds)
    return chat.complete([{"role": "user", "content": prompt}], model=MODEL, timeout=timeout, watch=lambda: None)


def failed(chat: Chat, seconds: float = 30) -> CallFailed:
    with pytest.raises(CallFailed) as told:
        ask(chat, seconds=seconds)
    return told.value


def test_an_answer(server: OpenAIServer, chat: Chat) -> None:
    completion = ask(chat)
    assert parse(completion.text).model_dump() == verdict_for(PROMPT)
    assert completion.model == "gpt-4.1-mini-2025-04-14"
    assert completion.usage is not None
    assert completion.usage.prompt == len(PROMPT) // 4
    assert completion.request_id.startswith("req_")
    again = ask(chat)
    assert again.usage is not None
    assert again.usage.cached == again.usage.prompt // 2
    [body, _] = [call.body for call in server.calls]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    # What the library adds by itself: no key that would make a repeated call a single one, and no second try.
    assert not [name for name in server.headers[0] if "idempotency" in name]
    assert server.headers[0]["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize(
    ("fault", "outcome", "billed", "kind"),
    [
        ("refusal", "refusal", True, "permanent"),
        ("truncated", "truncated", True, "permanent"),
        ("content_filter", "content_filter", True, "permanent"),
        ("content_filter_400", "content_filter", False, "permanent"),
        ("quota", "credit", False, "halted"),
        ("402", "credit", False, "halted"),
        ("401", "key_refused", False, "halted"),
        ("403", "key_refused", False, "halted"),
        ("404", "model_unknown", False, "halted"),
        ("429", "rate_limited", False, "rate_limited"),
        ("400", "rejected", False, "permanent"),
        ("too_long", "rejected", False, "permanent"),
        ("408", "server_error", False, "transient"),
        ("500", "server_error", False, "transient"),
        ("502", "server_error", None, "transient"),
        ("503", "server_error", False, "transient"),
        ("html", "server_error", None, "transient"),
        ("huge", "server_error", None, "transient"),
        ("reset", "unreachable", None, "transient"),
        ("cut", "unreachable", None, "transient"),
    ],
)
def test_every_outcome_is_one_call(
    server: OpenAIServer, chat: Chat, fault: str, outcome: str, billed: object, kind: str
) -> None:
    server.script.append(fault)
    found = failed(chat)
    assert (found.outcome, found.billed, found.error.kind) == (outcome, billed, kind)
    assert len(server.calls) == 1
    assert (found.usage is not None) is (billed is True)
    assert chat.host in str(found.error) or MODEL in str(found.error)
    assert ask(chat).text, "the next call is a good one"


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("invalid_json", "invalid_json"),
        ("missing", "invalid_json"),
        ("nan", "out_of_range"),
        ("infinity", "out_of_range"),
        ("out_of_range", "out_of_range"),
    ],
)
def test_an_answer_that_is_no_verdict(server: OpenAIServer, chat: Chat, fault: str, outcome: str) -> None:
    server.script.append(fault)
    completion = ask(chat)
    assert completion.usage is not None, "it is paid for"
    with pytest.raises(BadVerdict) as told:
        parse(completion.text)
    assert told.value.outcome == outcome


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_the_deadline_is_a_total_one(server: OpenAIServer, chat: Chat, fault: str) -> None:
    server.script.append(fault)
    found = failed(chat, seconds=0.6)
    assert (found.outcome, found.billed, found.error.kind) == ("timeout", None, "transient")
    assert "ANALYSIS_TIMEOUT" in str(found.error)
    assert found.seconds >= 0.6
    assert ask(chat).text


def test_no_connection_costs_nothing() -> None:
    chat = Chat(f"http://127.0.0.1:{free_port()}/v1", KEY, SCHEMA)
    found = failed(chat)
    assert (found.outcome, found.billed) == ("unreachable", False)
    chat.close()


def test_a_name_that_nobody_has_costs_nothing() -> None:
    chat = Chat("http://no-such-host.invalid/v1", KEY, SCHEMA)
    found = failed(chat)
    assert (found.outcome, found.billed) == ("unreachable", False)
    chat.close()


def test_a_server_that_takes_no_connection_costs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with ExitStack() as crowd:
            for _ in range(4):  # the kernel keeps one or two, and then answers nobody
                waiting = crowd.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            chat = Chat(f"http://127.0.0.1:{address[1]}/v1", KEY, SCHEMA)
            found = failed(chat, seconds=1)
            chat.close()
    assert (found.outcome, found.billed) == ("unreachable", False)


def test_a_server_that_speaks_no_http() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    chat = Chat(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", KEY, SCHEMA)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"\0\1 this is no HTTP\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    found = failed(chat)
    assert (found.outcome, found.billed) == ("unreachable", None)
    thread.join()
    listener.close()
    chat.close()


class Cancelled(LeaseLost):
    pass


def test_a_cancelled_call_ends_within_seconds(server: OpenAIServer, chat: Chat) -> None:
    server.script.append("hang")
    looks = []

    def watch() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise Cancelled("taken away")

    with pytest.raises(Cancelled):
        chat.complete([{"role": "user", "content": PROMPT}], model=MODEL, timeout=timedelta(minutes=10), watch=watch)
    assert len(looks) == 2
    assert ask(chat).text, "the others go on"


def test_closing_ends_what_runs(server: OpenAIServer, chat: Chat) -> None:
    server.script.append("hang")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(failed, chat, 600)
        while not server.calls:
            time.sleep(0.01)
        chat.close()
        assert running.result().outcome == "unreachable"
    assert ask(chat).text, "it opens again when it is used"


def test_many_threads_share_one_client(server: OpenAIServer, chat: Chat) -> None:
    server.latency = 0.2
    prompts = [f"block {number}" for number in range(120)]
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda prompt: parse(ask(chat, prompt).text).model_dump(), prompts))
    assert answers == [verdict_for(prompt) for prompt in prompts]
    assert set(server.counts.values()) == {1}


@pytest.mark.parametrize(
    ("style", "seconds"), [("seconds", 7.0), ("date", 7.0), ("ms", 7.0), ("reset", 7.0), ("none", 15.0)]
)
def test_a_rate_limit_says_when(server: OpenAIServer, chat: Chat, style: str, seconds: float) -> None:
    server.retry_after, server.retry_style = 7, style
    server.script.append("429")
    error = failed(chat).error
    assert isinstance(error, RateLimited)
    assert error.retry_after == pytest.approx(seconds, abs=1.1)  # a date has whole seconds


def test_headers_of_an_answer_tell_of_the_limits(server: OpenAIServer, chat: Chat) -> None:
    server.limit = 2
    assert ask(chat).limits.pause == 0
    assert 50 < ask(chat).limits.pause <= 60
    assert failed(chat).outcome == "rate_limited"


@pytest.mark.parametrize(("knows", "refusals"), [("json_schema", 0), ("json_object", 1), ("none", 2)])
def test_a_server_without_schemas_is_asked_without(server: OpenAIServer, chat: Chat, knows: str, refusals: int) -> None:
    server.knows = knows
    for _ in range(refusals):
        found = failed(chat)
        assert (found.outcome, found.billed, found.error.kind) == ("schema_unsupported", False, "transient")
    assert parse(ask(chat).text).model_dump() == verdict_for(PROMPT)
    ask(chat)
    assert len(server.calls) == refusals + 2, "what it knows is remembered"


def test_a_crowd_finds_out_only_once(server: OpenAIServer, chat: Chat) -> None:
    server.knows, server.latency = "json_object", 0.2
    with ThreadPoolExecutor(8) as pool:
        outcomes = [one.result().outcome for one in [pool.submit(failed, chat) for _ in range(8)]]
    assert outcomes == ["schema_unsupported"] * 8
    assert chat.level == 1
    assert ask(chat).text


@pytest.mark.parametrize("key", ["sk-wrong-0123456789", None])
def test_a_wrong_key(server: OpenAIServer, key: str | None) -> None:
    chat = Chat(server.url, key, SCHEMA)
    found = failed(chat)
    assert isinstance(found.error, Halted)
    assert (found.outcome, found.error.cause) == ("key_refused", "key")
    chat.close()


def test_a_server_that_needs_no_key(server: OpenAIServer) -> None:
    server.key = None
    chat = Chat(server.url, None, SCHEMA)
    assert ask(chat).usage is not None
    assert server.headers[0]["authorization"] == "Bearer none"
    chat.close()


def test_the_client_of_the_settings(server: OpenAIServer) -> None:
    chat = build_chat(Gpt.model_validate({"openai_api_key": KEY, "openai_base_url": server.url}))
    assert ask(chat).text
    chat.close()
    assert build_chat(Gpt.model_validate({"openai_api_key": KEY})).host == "api.openai.com"


@pytest.mark.parametrize("key", ["sk-ключ", "two words", "line\nbreak"])
def test_a_key_that_is_none_is_told_before_any_call(server: OpenAIServer, key: str) -> None:
    found = failed(Chat(server.url, key, SCHEMA))
    assert (found.outcome, found.billed) == ("key_refused", False)
    assert key not in str(found)
    assert server.calls == []


def test_a_key_with_a_line_break_at_its_end_is_taken(server: OpenAIServer) -> None:
    chat = Chat(server.url, f"{KEY}\n", SCHEMA)
    assert ask(chat).text
    chat.close()


def test_a_prompt_that_cannot_be_sent(chat: Chat) -> None:
    with pytest.raises(CallFailed) as told:
        ask(chat, "half a letter \ud800")
    assert (told.value.outcome, told.value.billed) == ("rejected", False)


def test_a_bug_is_told_as_one(chat: Chat) -> None:
    async def wrong(_client: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        chat.call(wrong, timeout=timedelta(seconds=5), watch=lambda: None)


def test_other_uses_of_the_client(server: OpenAIServer, chat: Chat) -> None:
    async def models(client: object) -> list[str]:
        return [model.id async for model in client.models.list()]  # type: ignore[attr-defined]

    assert chat.call(models, timeout=timedelta(seconds=5), watch=lambda: None) == list(server.models)


@pytest.mark.parametrize(
    "fault", ["400", "401", "403", "404", "429", "500", "content_filter_400", "refusal", "truncated", "cut", "hang"]
)
def test_nothing_private_is_shown(
    server: OpenAIServer, chat: Chat, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script.extend([fault, ""])
    found = failed(chat, seconds=0.5)
    completion = ask(chat)
    shown = [str(found), repr(found), repr(found.error), repr(chat), repr(completion), caplog.text]
    assert found.__cause__ is found.__context__ is None, "the library's error holds the request"
    secrets = ["hunter2", "Hanako", "太郎", KEY, KEY[:8], KEY[-4:], completion.text, "I'm sorry"]
    assert not [secret for secret in secrets for text in shown if secret in text]


def test_usage_of_a_refusal_is_kept(server: OpenAIServer, chat: Chat) -> None:
    server.script.append("refusal")
    assert failed(chat).usage == Usage(prompt=len(PROMPT) // 4, cached=0, completion=1)
