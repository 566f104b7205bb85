"""What people said is where it belongs, and nowhere else: logs, Redis, events, results, reports, incidents, alerts."""

import base64
import binascii
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from tests.support.openai_server import KEY, OpenAIServer, serving
from tests.support.receiver import receiving
from tests.support.servers import wait_for
from tests.support.system import DEVICES, System

from tests.support import quoting  # isort:skip

NewSystem = Callable[..., System]
WORDS = "Xyzzyplugh 秘密のことば"
MARKS = ("xyzzyplugh", "秘密", r"\u79d8\u5bc6", r"\xe7\xa7\x98")
# Where they belong.
OWN = {"transcripts", "vibe_whisper", "dashboard", "saved_parts", "quotes", "audio_files"}
FAULTS = ("400", "content_filter_400", "invalid_json", "missing", "refusal", "html", "out_of_range", "500")


@contextmanager
def listening(url: str) -> Iterator[list[str]]:
    """Everything that is sent to Redis: messages, events, results, counters."""
    heard: list[str] = []
    client: Any = redis.Redis.from_url(url)
    stop = threading.Event()

    def listen() -> None:
        with suppress(redis.RedisError, ValueError), client.monitor() as monitor:
            ready.set()
            for command in monitor.listen():
                heard.append(str(command["command"]))
                if stop.is_set():
                    return

    ready = threading.Event()
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield heard
    finally:
        stop.set()
        with redis.Redis.from_url(url) as other:
            other.ping()
        thread.join(10)


def readable(text: str) -> str:
    """A text, and what is wrapped in it."""
    wrapped = []
    for piece in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        try:
            wrapped.append(base64.b64decode(piece).decode(errors="replace"))
        except binascii.Error:
            continue
    return "\n".join([text, *wrapped]).lower()


def said(text: str, marks: tuple[str, ...]) -> list[str]:
    """Where a text holds one of the marks, with what stands around it."""
    whole = readable(text)
    return [whole[max(at - 150, 0) : at + 50] for mark in marks if (at := whole.find(mark)) >= 0]


def test_no_words_in_any_sink(new_system: NewSystem, recording: Path) -> None:
    with serving(OpenAIServer()) as server, receiving() as channel:
        server.by_prompt = {f"{WORDS} {fault}": deque([fault] * 9) for fault in FAULTS}
        system = new_system(
            OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY, TOBAN_SOURCES="tests.support.quoting",
            TOBAN_MAX_ATTEMPTS="2", ALERT_URLS=f"json://127.0.0.1:{channel.port}/",
            LOG_LEVEL="DEBUG", LOG_FORMAT="text", OPENAI_LOG="debug",
        )  # fmt: skip
        system.sql(quoting.TABLE)
        for number in range(11):
            system.sql("insert into quotes (id, words) values (%s, %s)", number, WORDS)
        for number, fault in enumerate(FAULTS):
            system.sql(
                "insert into dashboard (device_id, date, time_block, prompt) values (%s, '2025-07-18', %s, %s)",
                DEVICES[0], f"{number:02}-00", f"{WORDS} {fault}",
            )  # fmt: skip
        system.add(recording)
        with listening(system.redis.url) as heard:
            system.start("beat")
            system.run("all", "-A", "app", "worker", "-Q", "whisper,gpt,default", "-P", "threads", "-c", "4", "-n",
                       f"all-{id(system)}@%h", "-l", "debug")  # fmt: skip
            with Celery(broker=system.redis.url) as app:
                app.send_task("tasks.quote", args=["nothing"], queue="default")
                there = "select job from jobs where job = 'timeblock-prompt'"
                wait_for(lambda: bool(system.sql(there)), "the jobs", 60)
                system.sql("update jobs set enabled = true where job = 'timeblock-prompt'")
                system.sql("insert into jobs (job, title, every) values ('quote', 'Quote', '1 day')")
                app.send_task("tasks.quote_job", queue="default")
            judged = "select 1 from dashboard where processed_at is not null"
            system.wait_until(lambda _: bool(system.sql(judged)), 60)
            states = system.wait_done()
            wait_for(lambda: len(channel.received) >= 2, "the alerts", 60)
            wait_for(
                lambda: bool(system.sql("select 1 from runs where job = 'quote' and state = 'error'")),
                "the job's end",
                60,
            )
        with redis.Redis.from_url(system.redis.url) as client:
            kept = [str(client.dump(key)) for key in client.scan_iter("*")]

        assert (states["failed"], states["completed"] >= 2) == (17, True)
        heard_words = str(system.sql("select text from transcripts")[0]["text"]).lower()
        spoken = heard_words.split()
        rare = tuple(" ".join(spoken[at : at + 3]) for at in range(len(spoken) - 2))
        assert rare
        tables = [row["n"] for row in system.sql("select relname as n from pg_class where relkind = 'r'"
                                                 " and relnamespace = 'public'::regnamespace")]  # fmt: skip
        rows = {
            name: str(system.sql(f"select coalesce(string_agg(t::text, ' '), '') as all from public.{name} t"))
            for name in tables
        }
        assert all(said(rows[name], MARKS) for name in ("quotes", "dashboard"))  # they would be found
        sinks = {
            "log of the worker": system.log("all"),
            "log of beat": system.log("beat"),
            "commands to Redis": "\n".join(heard),
            "keys in Redis": "\n".join(kept),
            "alerts": str(channel.received),
            **{f"table {name}": text for name, text in rows.items() if name not in OWN},
        }
        assert {name: found for name, text in sinks.items() if (found := said(text, (*MARKS, *rare)))} == {}
        assert "task-failed" in readable(sinks["commands to Redis"])
        assert "valueerror in quote" in readable(sinks["log of the worker"])
