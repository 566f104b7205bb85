"""Spans of one process: they arrive at its end, say nothing of an error's words, and never hold up the work."""

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog

from app import tracing
from app.database import Database
from app.database.postgres import PostgresDatabase
from app.database.supabase import SupabaseDatabase
from app.doctor.traces import steps
from app.errors import Permanent
from app.settings import Traces
from tests.support.collector import Collector
from tests.support.servers import Postgres, PostgREST, free_port, key_of


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector().start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a start writes into it goes again."""
    for name in Traces.model_fields:
        monkeypatch.setenv(f"OTEL_{name}".upper(), "x")
        monkeypatch.delenv(f"OTEL_{name}".upper())
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    yield
    tracing.stop()
    # What still tries ends within its own time, and before the next test.
    for thread in threading.enumerate():
        if thread.name in {"toban-traces", "OtelBatchSpanRecordProcessor"}:
            thread.join(20)
            assert not thread.is_alive()


def settings(url: str, **more: Any) -> Traces:
    return Traces(_env_file=None, exporter_otlp_endpoint=url, **more)


def test_off_by_default() -> None:
    tracing.start(Traces(_env_file=None), "test")
    carried = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    with tracing.span("work"), tracing.outside("call", {}):
        assert tracing.traceparent() is None
        assert tracing.headers(carried) == {}
        assert tracing.earlier() == {}
    assert "toban-traces" not in {thread.name for thread in threading.enumerate()}


def test_the_last_spans_go_out_when_the_process_ends(collector: Collector) -> None:
    tracing.start(settings(collector.url), "test")
    with tracing.span("outer"), pytest.raises(Permanent), tracing.outside("call", {}):
        raise Permanent("the key of device-7")
    with tracing.outside("lonely", {}):
        pass
    assert collector.spans == []
    tracing.stop()
    outer, call = sorted(collector.spans, key=lambda span: span.name, reverse=True)
    assert (outer.name, outer.service, outer.failed) == ("outer", "toban-test", False)
    assert (call.parent, call.failed, call.attributes) == (outer.id, True, {"error.type": "permanent"})
    assert "device-7" not in call.text
    with tracing.span("after"):
        assert tracing.traceparent() is None


def test_the_standards_variables_are_honoured(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {
        "exporter_otlp_headers": "authorization=Bearer%20x",
        "service_name": "ours",
        "resource_attributes": "deployment.environment.name=production",
    }
    tracing.start(settings(collector.url, **more), "test")
    with tracing.span("one"):
        pass
    tracing.stop()
    [span] = collector.spans
    assert span.service == "ours"
    assert "production" in span.text
    assert {name.lower(): value for name, value in collector.headers[0].items()}["authorization"] == "Bearer x"
    with monkeypatch.context() as env:
        env.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
        tracing.start(Traces(_env_file=None), "test")
        with tracing.span("two"):
            pass
        tracing.stop()
    assert [span.name for span in collector.spans] == ["one", "two"]
    tracing.start(settings(collector.url, traces_sampler="parentbased_traceidratio", traces_sampler_arg="0"), "test")
    with tracing.span("three"):
        assert not int(str(tracing.traceparent())[-2:], 16) & 1, "others leave it out too"
    tracing.stop()
    assert len(collector.spans) == 2
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as env:
            env.setenv(name, value)
            assert not settings(collector.url).on


def test_a_collector_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setattr(tracing, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=1) as hole:
        tracing.start(settings(f"http://127.0.0.1:{hole.getsockname()[1]}"), "test")
        for _ in range(1000):
            with tracing.span("work"):
                pass
        tracing.stop()
        assert [thread.name for thread in threading.enumerate() if thread.name == "toban-traces"], (
            "it is not waited for"
        )


def test_one_line_tells_that_it_is_away_and_one_that_it_is_back(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.stop()
    with structlog.testing.capture_logs() as told:
        tracing.start(settings(collector.url), "test")
        provider = tracing._provider
        assert provider
        for _ in range(3):
            with tracing.span("lost"):
                pass
            provider.force_flush()
        collector.start()
        with tracing.span("taken"):
            pass
        provider.force_flush()
    # Servers of other tests live on in this process, with threads that tell of their own matters.
    assert [event for line in told if (event := line["event"]).startswith("traces.")] == ["traces.away", "traces.back"]
    assert [span.name for span in collector.spans] == ["taken"]


def test_without_the_extra_it_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.otlp", None)
    monkeypatch.setattr(Traces, "installed", False)
    wanted = settings("http://127.0.0.1:4318")
    with structlog.testing.capture_logs() as told:
        tracing.start(wanted, "test")
        with tracing.span("work"):
            pass
    assert [line["event"] for line in told] == ["traces.missing"]
    assert "pip install 'toban[otel]'" in told[0]["remedy"]
    [finding] = steps(wanted)
    assert (finding.level, finding.code) == ("WARN", "D801")
    assert "toban[otel]" in finding.remedy


def test_what_the_doctor_says(collector: Collector) -> None:
    assert list(steps(Traces(_env_file=None))) == []
    assert [(f.level, f.code) for f in steps(settings(collector.url))] == [("OK", "D802")]
    [finding] = steps(settings(f"http://127.0.0.1:{free_port()}"))
    assert (finding.level, finding.code) == ("WARN", "D802")


@pytest.mark.parametrize("url", ["localhost:4318", "http://", "grpc://x:4317", "http://x:port"])
def test_an_address_that_is_none(url: str) -> None:
    assert [problem.code for problem in settings(url).problems()] == ["E070"]


def test_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert [problem.code for problem in settings("http://x:4317").problems()] == ["E071"]
    assert list(Traces(_env_file=None).problems()) == []


@pytest.mark.parametrize("transport", ["postgres", "supabase"])
def test_an_item_that_a_request_opens_carries_its_trace(
    request: pytest.FixtureRequest, collector: Collector, migrated: Postgres, shared_database_url: str, transport: str
) -> None:
    database: Database
    if transport == "postgres":
        database = PostgresDatabase(shared_database_url)
    else:
        rest: PostgREST = request.getfixturevalue("postgrest")
        database = SupabaseDatabase(rest.url, key_of("service_role"), rest_url=rest.url)
    with psycopg.connect(shared_database_url, autocommit=True) as app:
        app.execute("truncate audio_files, work_items restart identity cascade")
        app.execute("insert into audio_files values ('d1', '2025-07-18T03:00:00Z', 'a.wav', 'completed')")

        def params() -> dict[str, str]:
            row = app.execute("select params from work_items").fetchone()
            return dict(row[0]) if row else {}

        def again() -> None:
            database.call("toban_reprocess", source="transcription", partition="d1", params={"model": "tiny"})

        again()
        assert params() == {"model": "tiny"}, "off: nothing is carried"
        tracing.start(settings(collector.url), "test")
        database.call("toban_reprocess", source="transcription", partition="d1", priority=11)
        assert params() == {"model": "tiny"}, "what belongs to no trace carries none"
        with tracing.span("request"):
            database.call("toban_reprocess", source="transcription", partition="d1", priority=12)
        tracing.stop()
        [call] = collector.named("toban_reprocess")
        assert params().pop("traceparent")[:-3] == f"00-{call.trace}-{call.id}"
        app.execute("update audio_files set transcriptions_status = 'completed'")
        app.execute("update audio_files set transcriptions_status = 'pending'")
        assert params() == {}, "the next time is another's"
        app.execute("set toban.trace = 'nonsense'")
        app.execute("update audio_files set transcriptions_status = 'completed'")
        app.execute("update audio_files set transcriptions_status = 'pending'")
        assert params() == {}
        app.execute("truncate audio_files, work_items restart identity cascade")
    database.close()
