"""The server that stands in for OpenAI, asked by OpenAI's own client: it answers what the client can read."""

import asyncio
import json
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.gpt.answers import Message, completion_of, request_body
from app.gpt.chat import Chat
from app.gpt.failures import CallFailed, Refused, refused
from app.gpt.verdict import SCHEMA, parse
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

MODEL = "gpt-4.1-mini"
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as server:
        yield server


@pytest.fixture
def chat(server: OpenAIServer) -> Iterator[Chat]:
    chat = Chat(server.url, KEY, SCHEMA)
    yield chat
    chat.close()


def run(chat: Chat, what: Callable[["AsyncOpenAI"], Any]) -> Any:
    return chat.call(what, timeout=timedelta(seconds=30), watch=lambda: None)


def line(number: int, **changes: Any) -> dict[str, Any]:
    messages: list[Message] = [{"role": "user", "content": f"部屋 {number}"}]
    body = request_body(messages, MODEL, SCHEMA)
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def submitted(chat: Chat, lines: Sequence[dict[str, Any]]) -> "Batch":
    """A batch of these lines."""
    data = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode()

    async def submit(client: "AsyncOpenAI") -> "Batch":
        file = await client.files.create(file=("rows.jsonl", data), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": "7"}
        )

    return run(chat, submit)  # type: ignore[no-any-return]


def ended(chat: Chat, batch: "Batch") -> tuple["Batch", list[str]]:
    """The batch when it has ended, and the states it went through."""

    async def follow(client: "AsyncOpenAI") -> tuple["Batch", list[str]]:
        now = batch
        states: list[str] = [batch.status]
        while now.status not in ENDED:
            await asyncio.sleep(0.01)
            now = await client.batches.retrieve(batch.id)
            states += [] if now.status == states[-1] else [now.status]
        return now, states

    return run(chat, follow)  # type: ignore[no-any-return]


def lines_of(chat: Chat, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Lines of an output or error file, by custom_id."""
    if file_id is None:
        return {}

    async def read(client: "AsyncOpenAI") -> bytes:
        return (await client.files.content(file_id)).content

    found = [json.loads(one) for one in run(chat, read).splitlines()]
    return {one["custom_id"]: one for one in found}


def test_a_batch_is_answered_at_half_the_price(server: OpenAIServer, chat: Chat) -> None:
    batch = submitted(chat, [line(number) for number in range(20)])
    assert batch.metadata == {"job": "7"}
    done, states = ended(chat, batch)
    assert states == ["validating", "in_progress", "finalizing", "completed"]
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (20, 20, 0)
    assert done.error_file_id is None
    found = lines_of(chat, done.output_file_id)
    assert list(found) != [f"row-{number}" for number in range(20)], "the order is another one"
    for number in range(20):
        response = found[f"row-{number}"]["response"]
        assert response["status_code"] == 200
        completion = completion_of(response["body"], chat.host, MODEL)
        assert parse(completion.text).model_dump() == verdict_for(f"部屋 {number}")
    assert server.billed == {f"row-{number}": 1 for number in range(20)}
    in_batch, server.dollars = server.dollars, Decimal(0)
    for number in range(20):
        server.bill("", server.made(line(number)["body"], "", f"部屋 {number}").tokens)
    assert in_batch == server.dollars / 2


def test_lines_fail_one_by_one(server: OpenAIServer, chat: Chat) -> None:
    server.by_prompt |= {"部屋 3": deque(["500"]), "部屋 5": deque(["refusal"]), "部屋 7": deque(["quota"])}
    done, _ = ended(chat, submitted(chat, [line(number) for number in range(10)]))
    good, bad = lines_of(chat, done.output_file_id), lines_of(chat, done.error_file_id)
    assert bad.keys() == {"row-3", "row-7"}
    assert len(good) == 8
    with pytest.raises(CallFailed, match="refusal"):
        completion_of(good["row-5"]["response"]["body"], chat.host, MODEL)
    response = bad["row-7"]["response"]
    answer = Refused.read(response["status_code"], response["body"])
    assert refused(answer, chat.host, MODEL, headers={}, secret=KEY, private=[]).outcome == "credit"


def test_an_expired_batch_keeps_what_is_done(server: OpenAIServer, chat: Chat) -> None:
    server.batches.expire_after = 4
    done, states = ended(chat, submitted(chat, [line(number) for number in range(10)]))
    assert states[-1] == "expired"
    assert len(lines_of(chat, done.output_file_id)) == 4
    undone = lines_of(chat, done.error_file_id)
    assert [(one["response"], one["error"]["code"]) for one in undone.values()] == [(None, "batch_expired")] * 6
    assert len(server.billed) == 4


def test_a_cancelled_batch_keeps_what_is_done(server: OpenAIServer, chat: Chat) -> None:
    async def cancel(client: "AsyncOpenAI") -> str:
        await client.batches.retrieve(batch.id)
        return (await client.batches.cancel(batch.id)).status

    batch = submitted(chat, [line(number) for number in range(10)])
    assert run(chat, cancel) == "cancelling"
    done, _ = ended(chat, batch)
    assert done.status == "cancelled"
    assert len(lines_of(chat, done.output_file_id)) == 5


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([line(1), line(1)], "duplicate_custom_id"),
        ([line(1, url="/v1/embeddings")], "invalid_url"),
        ([line(1, body={"model": "mystery", "messages": []})], "model_not_found"),
        ([], "empty_file"),
    ],
)
def test_a_file_that_is_refused(chat: Chat, lines: list[dict[str, Any]], code: str) -> None:
    done, states = ended(chat, submitted(chat, lines))
    assert states == ["validating", "failed"]
    assert done.errors is not None
    assert done.errors.data is not None
    assert done.errors.data[0].code == code


def test_batches_and_files_are_listed_and_deleted(server: OpenAIServer, chat: Chat) -> None:
    made = [submitted(chat, [line(1)]).id for _ in range(5)]

    async def listed(client: "AsyncOpenAI") -> list[str]:
        return [batch.id async for batch in client.batches.list(limit=2)]

    assert run(chat, listed) == made[::-1]

    async def delete(client: "AsyncOpenAI") -> list[str]:
        names = [file.id async for file in client.files.list()]
        for name in names:
            await client.files.delete(name)
        return [file.id async for file in client.files.list()]

    assert run(chat, delete) == []
    assert server.batches.contents == {}


def test_batches_go_on_by_the_clock(server: OpenAIServer, chat: Chat) -> None:
    server.batches.step = 0.05
    done, _ = ended(chat, submitted(chat, [line(1)]))
    assert done.status == "completed"


def test_a_batch_that_is_not_there(chat: Chat) -> None:
    with pytest.raises(CallFailed) as told:
        run(chat, lambda client: client.batches.retrieve("batch_x"))
    assert told.value.outcome == "rejected"


def test_faults_are_the_same_in_every_order(server: OpenAIServer) -> None:
    server.shares = {"429": 0.1, "500": 0.05, "hang": 0.05, "invalid_json": 0.03, "nan": 0.02}
    prompts = [f"block {number}" for number in range(2000)]
    drawn = [server.draw(prompt, 1) for prompt in prompts]
    assert drawn == [server.draw(prompt, 1) for prompt in prompts]
    assert [server.draw(prompt, 2) for prompt in prompts] != drawn
    for fault, share in server.shares.items():
        assert Counter(drawn)[fault] / len(prompts) == pytest.approx(share, rel=0.3)


def test_it_runs_beside_a_benchmark() -> None:
    command = [sys.executable, "-m", "tests.support.openai_server", "--limit", "1", "--fault", "nan=1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            chat = Chat(url, KEY, SCHEMA)
            messages: list[Message] = [{"role": "user", "content": "x"}]
            timeout = timedelta(seconds=30)
            assert "NaN" in chat.complete(messages, model=MODEL, timeout=timeout, watch=lambda: None).text
            with pytest.raises(CallFailed, match="rate_limited"):
                chat.complete(messages, model=MODEL, timeout=timeout, watch=lambda: None)
            chat.close()
            stats = httpx.get(url.replace("/v1", "/stats")).json()
        finally:
            process.terminate()
    assert (stats["calls"], stats["billed"], stats["statuses"]) == (2, 1, {"200": 1, "429": 1})
