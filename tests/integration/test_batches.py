"""The cheap lane over a real ledger, before a server that speaks the Batch API."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row

from app.cli.status import rendered
from app.dispatch import dispatch
from app.errors import Permanent, TobanError, Transient
from app.gpt import batch_api, batches
from app.gpt.batches import Round, opened_before, run_batches
from app.ledger import Claimed
from app.runtime import Runtime
from app.services import Services, build_services
from app.settings import GROUPS, Settings
from app.sources import registry
from app.work import attempt_item
from beat_schedule import timetable
from tasks.jobs import analysis_batch
from tests.support.ledger import at_once
from tests.support.openai_batches import Answer, Batches
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.screen import printed
from tests.support.servers import free_port

HOUR = 3600
QUOTA: Answer = (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
BUSY: Answer = (429, {"error": {"message": "Too many requests", "code": "rate_limit_exceeded"}})
BROKEN: Answer = (500, {"error": {"message": "The server had an error"}})
UNKNOWN: Answer = (404, {"error": {"message": "Not Found"}})
TOO_LARGE: Answer = (400, {"error": {"message": "File is too large."}})
Call = Callable[..., Any]


@dataclass
class FaultyBatches(Batches):
    """`faults`: answers of the next calls by method and address, given instead of (or, in `late`, after) the real."""

    faults: dict[str, deque[Answer]] = field(default_factory=dict)
    late: dict[str, deque[Answer]] = field(default_factory=dict)

    def answer(
        self, fake: OpenAIServer, method: str, address: str, headers: Mapping[str, str], content: bytes
    ) -> Answer:
        name = f"{method} {address.partition('?')[0].removeprefix('/v1/')}"
        for named, faults in self.faults.items():
            if name.startswith(named) and faults:
                return faults.popleft()
        answer = super().answer(fake, method, address, headers, content)
        for named, faults in self.late.items():
            if name.startswith(named) and faults:
                return faults.popleft()
        return answer


class Killed(BaseException):
    """The process ends here, without a word."""


class World:
    """A ledger, a provider, and a process of the program. `app`: the app's own connection."""

    def __init__(self, database_url: str, folder: Path, fake: OpenAIServer) -> None:
        self.database_url, self.folder, self.fake = database_url, folder, fake
        self.app = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        self.open: list[Services] = []

    @property
    def provider(self) -> FaultyBatches:
        assert isinstance(self.fake.batches, FaultyBatches)
        return self.fake.batches

    def services(self, **gpt: object) -> Services:
        """A process with such settings."""
        given = {"openai_api_key": KEY, "openai_base_url": self.fake.url, "analysis_deadline": 24 * HOUR, **gpt}
        values: dict[str, dict[str, Any]] = {
            "database": {"database_url": self.database_url},
            "audio": {"audio_folder": str(self.folder), "device_timezone": "UTC"},
            "broker": {"url": "memory://"},
            "gpt": {name: value for name, value in given.items() if value is not None},
        }
        groups = {name: group(_env_file=None, **values.get(name, {})) for name, group in GROUPS.items()}
        own = build_services(Settings(**groups))
        self.open.append(own)
        return own

    def close(self) -> None:
        for own in self.open:
            own.close()
        self.app.close()

    # --- the app ---------------------------------------------------------------------------------------------------

    def sql(self, statement: LiteralString, *values: object) -> list[dict[str, Any]]:
        cursor = self.app.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    def rows(self, count: int, device: str = "d", waiting: int = 700) -> None:
        """The app has written `count` rows with a prompt, `waiting` seconds ago."""
        self.sql(
            "insert into dashboard (device_id, date, time_block, prompt)"
            " select %s, t, to_char(t, 'HH24-MI'), 'Row ' || n || ' of ' || %s || '; rather private words.'"
            " from (select n, '2025-07-18'::timestamp + n * interval '30 min' as t from generate_series(0, %s) n) x",
            device, device, count - 1,
        )  # fmt: skip
        self.sql("update work_items set opened_at = now() - %s * interval '1 s' where partition = %s", waiting, device)

    def items(self) -> list[dict[str, Any]]:
        return self.sql("select * from work_items order by key")

    def item(self, number: int) -> dict[str, Any]:
        """The item of a device's row."""
        return self.items()[number]

    def states(self) -> dict[str, int]:
        return {row["state"]: row["n"] for row in self.sql("select state, count(*) as n from work_items group by 1")}

    def calls(self) -> dict[str, int]:
        rows = self.sql("select lane || ' ' || outcome as how, count(*) as n from llm_calls group by 1")
        return {row["how"]: row["n"] for row in rows}

    def batch(self) -> dict[str, Any]:
        return self.sql("select * from llm_batches order by id desc limit 1")[0]

    def incident(self) -> str | None:
        rows = self.sql("select last_message from job_status where job_key = 'queue-gpt' and last_status = 'error'")
        return rows[0]["last_message"] if rows else None

    # --- time and the program --------------------------------------------------------------------------------------

    def later(self) -> None:
        """A pause is over: whoever looked after a batch is dead, what could not be sent may be tried again."""
        self.sql("update llm_batches set busy_until = now(), ended_at = ended_at - interval '1 hour'")
        self.sql("update queue_holds set until = now()")
        self.sql("update work_items set available_at = now() where state = 'pending'")

    def until_ended(self, services: Services) -> None:
        """Look after what is out, until nothing is; send nothing new."""
        for _ in range(10):
            self.later()
            lane = batches._Lane(services, Round())
            lane.look_after()
            lane.close()
            if not self.sql("select id from llm_batches where state <> 'ended'"):
                return
        raise AssertionError(self.sql("select * from llm_batches"))

    def direct(self, services: Services) -> int:
        """A worker does what the direct lane has to do; returns how many rows it has tried."""
        runtime = Runtime(services, "gpt@host", ["gpt"], 50, lambda *_: None, lambda _: None, killable=False)
        services.ledger.heartbeat(
            worker=runtime.worker, node="gpt@host", pid=1, queues=["gpt"], slots=50, rss_bytes=1, stall=300, items=[]
        )
        sent: list[Claimed] = []
        dispatch(services, registry["analysis"], lambda _, item: sent.append(item))
        for item in sent:
            attempt_item(runtime, registry["analysis"], item.id, item.task_id)
        return len(sent)

    def finish(self, services: Services) -> None:
        """Both lanes work until every row has ended."""
        for _ in range(12):
            self.later()
            run_batches(services)
            self.direct(services)
            if self.states().keys() <= {"completed", "failed", "skipped"}:
                return
        raise AssertionError(self.items())

    # --- what has to be true ---------------------------------------------------------------------------------------

    def settled(self) -> None:
        """Every row has the verdict on its prompt; what the calls cost stands in the ledger, to the last cent."""
        assert self.states().keys() == {"completed"}
        for row in self.sql("select * from dashboard"):
            wanted = verdict_for(row["prompt"])
            assert {name: row[name] for name in wanted} == wanted
            assert row["status"] == "completed"
        self.paid()

    def paid(self) -> None:
        told = self.sql("select coalesce(sum(cost), 0) as cost from llm_calls")[0]["cost"]
        assert told == round(self.fake.dollars, 8)
        assert self.sql("select coalesce(sum(cost), 0) as cost from llm_days")[0]["cost"] == told
        assert not self.sql("select id from llm_calls where outcome in ('sent', 'lost') or possibly_billed")

    def secret(self) -> None:
        """No word of a prompt stands anywhere but in its row."""
        told = self.sql("select coalesce(string_agg(last_error, ' '), '') as words from work_items")[0]["words"]
        told += self.sql("select coalesce(string_agg(message, ' '), '') as words from llm_batches")[0]["words"]
        assert "private" not in told
        assert KEY[8:] not in told


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    with serving(OpenAIServer(batches=FaultyBatches())) as fake:
        own = World(database_url, tmp_path, fake)
        yield own
        own.close()


@pytest.fixture
def services(world: World) -> Services:
    own = world.services()
    own.database.call("toban_sync_jobs", jobs=[job.row() for job in timetable().values()])
    return own


def dies(monkeypatch: pytest.MonkeyPatch, services: Services, step: str, when: str, nth: int = 1) -> None:
    """The process dies `before` or `after` the nth time that it takes a step: of the ledger, or of the provider."""
    owner: Any = services.database if step.startswith("toban_") else batch_api.BatchApi
    name = "call" if step.startswith("toban_") else step
    real, count = getattr(owner, name), 0

    def call(*args: Any, **params: Any) -> Any:
        nonlocal count
        mine = args[0] == step if owner is services.database else True
        count += mine
        if mine and count == nth and when == "before":
            raise Killed
        answer = real(*args, **params)
        if mine and count == nth:
            raise Killed
        return answer

    monkeypatch.setattr(owner, name, call)


# --- the happy way -------------------------------------------------------------------------------------------------


def test_rows_that_may_wait_cost_half(world: World, services: Services) -> None:
    world.rows(60, waiting=0)
    done = run_batches(services)
    assert (done.sent, world.states(), world.calls()) == (60, {"processing": 60}, {"batch sent": 60})
    assert world.direct(services) == 0
    assert str(run_batches(services)) == "0 rows sent in batches, 0 answered, 0 back to be asked one by one"
    assert world.batch()["message"] == "in_progress"
    world.finish(services)
    world.settled()
    assert (world.calls(), len(world.fake.calls)) == ({"batch ok": 60}, 0)
    assert world.sql("select distinct analysis_result ->> 'model_used' as m from dashboard") == [
        {"m": "gpt-4.1-mini-2025-04-14"}
    ]
    batch = world.batch()
    assert (batch["state"], batch["size"], batch["answered"], batch["message"]) == ("ended", 60, 60, "completed")
    assert world.provider.files == {}  # they hold what people said


def test_few_rows_wait_for_more(world: World, services: Services) -> None:
    world.rows(3, waiting=60)
    assert run_batches(services) == Round()
    assert world.direct(services) == 0
    world.sql("update work_items set opened_at = opened_at - interval '10 min'")
    assert run_batches(services) == Round(sent=3)


def test_more_rows_than_one_batch_takes(world: World, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST", 20)
    world.rows(50)
    assert run_batches(services) == Round(sent=50)
    assert [row["size"] for row in world.sql("select size from llm_batches order by id")] == [20, 20, 10]
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 50}


def test_the_job_tells_what_it_did(world: World, services: Services, runtime: Runtime) -> None:
    world.rows(2)
    assert analysis_batch()["message"] == "2 rows sent in batches, 0 answered, 0 back to be asked one by one"
    assert world.sql("select job, state from runs") == [{"job": "analysis-batch", "state": "success"}]


def test_status_shows_a_batch_as_one_line(world: World, services: Services) -> None:
    world.rows(40)
    run_batches(services)
    call = services.database.call
    shown = printed(rendered(call("toban_status") | call("toban_other_incidents") | call("toban_modes")))
    assert "Running" not in shown
    (line,) = [line.split() for line in shown.partition("Batches")[2].splitlines() if line.startswith("analysis")][:1]
    assert line[:4] == ["analysis", "1", "40", "40"]


# --- the two lanes -------------------------------------------------------------------------------------------------


def test_no_row_is_taken_by_both_lanes(world: World, services: Services) -> None:
    world.rows(1, "lane", waiting=700)
    world.rows(1, "late", waiting=12 * HOUR)
    world.rows(1, "asked", waiting=700)
    services.database.call("toban_reprocess", source="analysis", partition="asked")
    before = opened_before(services)
    assert before is not None
    assert (datetime.now(UTC) - before).total_seconds() > 10 * HOUR
    assert world.direct(services) == 2
    assert run_batches(services) == Round(sent=1)
    assert {item["partition"]: item["state"] for item in world.items()} == {
        "asked": "completed", "lane": "processing", "late": "completed",
    }  # fmt: skip


def test_a_held_queue_sends_nothing(world: World, services: Services) -> None:
    world.rows(1)
    services.database.call("toban_hold", queue="gpt", cause="key", reason="no", seconds=60, incident=True)
    assert run_batches(services) == Round()
    assert world.direct(services) == 0


def test_without_a_deadline_or_a_key_there_is_no_lane(world: World) -> None:
    world.rows(1)
    for services in (world.services(analysis_deadline=None), world.services(openai_api_key=None, openai_base_url=None)):
        assert opened_before(services) is None
        assert run_batches(services) == Round()
    assert world.fake.batches.files == {}


def test_a_short_deadline_leaves_half_of_it_to_the_direct_lane(world: World) -> None:
    services = world.services(analysis_deadline=600)
    world.rows(1, "soon", waiting=80)
    world.rows(1, "late", waiting=160)
    assert run_batches(services) == Round(sent=1)
    assert world.direct(services) == 1
    assert world.item(1)["worker"] == "batch 1"


def test_a_blank_prompt_is_not_paid_for(world: World, services: Services) -> None:
    world.rows(2)
    world.sql("update dashboard set prompt = '  ' where time_block = '00-00'")
    world.sql("update work_items set opened_at = now() - interval '1 hour'")
    assert run_batches(services) == Round(sent=1, left=1)
    world.finish(services)
    assert (world.item(0)["state"], world.item(1)["state"]) == ("failed", "completed")
    assert "the row's prompt is empty" in world.item(0)["last_error"]
    assert world.calls() == {"batch ok": 1}


def test_the_deadline_is_taken_away_while_batches_are_out(world: World, services: Services) -> None:
    world.rows(2)
    run_batches(services)
    world.rows(1, "new")
    without = world.services(analysis_deadline=None)
    assert run_batches(without) == Round()
    assert world.direct(without) == 1
    world.finish(without)
    world.settled()
    assert world.calls() == {"batch ok": 2, "direct ok": 1}


# --- what does not come back ---------------------------------------------------------------------------------------


def test_the_answers_of_an_expired_batch_are_kept(world: World, services: Services) -> None:
    world.provider.expire_after = 20
    world.rows(60)
    run_batches(services)
    world.until_ended(services)
    assert world.states() == {"completed": 20, "pending": 40}
    assert world.calls() == {"batch ok": 20, "batch unanswered": 40}
    assert {(item["tries"], item["params"]["direct"]) for item in world.items() if item["state"] == "pending"} == {
        (0, True)
    }
    assert run_batches(services).sent == 0
    world.finish(services)
    world.settled()
    assert (world.batch()["message"], world.batch()["answered"]) == ("expired", 20)
    assert world.calls() == {"batch ok": 20, "batch unanswered": 40, "direct ok": 40}


def test_rows_leave_before_their_deadline_with_what_has_been_answered(world: World, services: Services) -> None:
    world.rows(10)
    run_batches(services)
    run_batches(services)
    world.sql("update llm_batches set leave_by = now()")
    run_batches(services)
    assert world.batch()["state"] == "cancelling"
    assert {item["state"] for item in world.items()} == {"processing"}
    assert run_batches(services) == Round(answered=5, left=5)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 5, "batch unanswered": 5, "direct ok": 5}


def test_a_cancelled_batch_that_does_not_end_gives_its_rows_back_at_their_deadline(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows(4)
    run_batches(services)
    run_batches(services)
    monkeypatch.setattr(world.provider, "_move", lambda *_: None)
    world.sql("update llm_batches set leave_by = now()")
    run_batches(services)
    world.sql("update work_items set opened_at = opened_at - interval '1 day', lease_until = now(), run_until = now()")
    assert world.direct(services) == 4
    monkeypatch.undo()
    world.until_ended(services)
    world.settled()  # what it answered all the same is paid, and of no use
    assert world.calls() == {"direct ok": 4, "batch unused": 2, "batch unanswered": 2}


def test_a_batch_that_ended_while_it_was_cancelled(world: World, services: Services) -> None:
    world.rows(2)
    run_batches(services)
    world.provider.faults["POST batches/batch"] = deque(
        [(409, {"error": {"message": "Cannot cancel a batch with status 'completed'."}})]
    )
    world.sql("update llm_batches set leave_by = now()")
    run_batches(services)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 2}


def test_a_batch_that_is_refused_as_a_whole(world: World, services: Services) -> None:
    world.provider.fail = "token_limit_exceeded"
    world.rows(3)
    run_batches(services)
    assert run_batches(services) == Round(left=3)
    assert world.batch()["message"] == "failed: token_limit_exceeded"
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch unanswered": 3, "direct ok": 3}


def test_a_batch_that_the_provider_has_forgotten(world: World, services: Services) -> None:
    world.rows(3)
    run_batches(services)
    world.provider.all.clear()
    assert run_batches(services) == Round(left=3)
    assert world.calls() == {"batch lost": 3}
    assert world.sql("select distinct possibly_billed as p from llm_calls") == [{"p": True}]
    world.finish(services)
    assert world.calls() == {"batch lost": 3, "direct ok": 3}
    assert {item["tries"] for item in world.items()} == {1}


# --- rows that change meanwhile ------------------------------------------------------------------------------------


def test_rows_change_while_they_are_out(world: World, services: Services) -> None:
    world.rows(5)
    run_batches(services)
    world.sql("update dashboard set prompt = 'Changed; rather private.' where time_block = '00-00'")
    world.sql("update dashboard set status = 'completed', summary = 'mine' where time_block = '00-30'")
    world.sql("delete from dashboard where time_block = '01-00'")
    services.database.call("toban_reprocess", source="analysis", keys=["d/2025-07-18/01-30"])
    run_batches(services)
    assert [item["state"] for item in world.items()] == ["pending", "completed", "skipped", "pending", "processing"]
    assert [item["tries"] for item in world.items() if item["state"] == "pending"] == [0, 0]
    assert world.direct(services) == 1  # the one that was asked for by hand
    world.until_ended(services)
    assert world.calls() == {"batch ok": 1, "batch unused": 4, "direct ok": 1}
    world.sql("update work_items set opened_at = now() - interval '1 hour' where state = 'pending'")
    world.finish(services)
    assert world.calls() == {"batch ok": 2, "batch unused": 4, "direct ok": 1}
    rows = world.sql("select prompt, summary, vibe_score from dashboard order by time_block")
    assert [row["vibe_score"] for row in rows] == [
        None if row["summary"] == "mine" else verdict_for(row["prompt"])["vibe_score"] for row in rows
    ]
    world.paid()


def test_a_row_changes_just_before_its_answer_is_written(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows(2)
    run_batches(services)
    real = services.database.call

    def call(function: str, **params: Any) -> Any:
        answer = real(function, **params)
        if function == "toban_batch_items":
            world.sql("update dashboard set prompt = 'Changed.' where time_block = '00-00'")
        return answer

    monkeypatch.setattr(services.database, "call", call)
    world.until_ended(services)
    monkeypatch.undo()
    assert [item["state"] for item in world.items()] == ["pending", "completed"]
    assert world.calls() == {"batch ok": 1, "batch unused": 1}
    world.sql("update work_items set opened_at = now() - interval '1 hour' where state = 'pending'")
    world.finish(services)
    world.settled()


def test_a_batch_whose_rows_have_all_gone_is_cancelled(world: World, services: Services) -> None:
    world.rows(4)
    run_batches(services)
    world.sql("update dashboard set status = 'completed'")
    run_batches(services)
    assert world.batch()["state"] == "cancelling"
    world.until_ended(services)
    world.paid()


# --- answers that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "state", "kind", "tries", "outcome"),
    [
        ("429", "pending", "rate_limited", 0, "rate_limited"),
        ("500", "pending", "transient", 1, "server_error"),
        ("503", "pending", "transient", 1, "server_error"),
        ("400", "failed", "permanent", 1, "rejected"),
        ("too_long", "failed", "permanent", 1, "rejected"),
        ("content_filter_400", "failed", "permanent", 1, "content_filter"),
        ("refusal", "failed", "permanent", 1, "refusal"),
        ("truncated", "failed", "permanent", 1, "truncated"),
        ("content_filter", "failed", "permanent", 1, "content_filter"),
        ("invalid_json", "pending", "bad_answer", 1, "invalid_json"),
        ("nan", "pending", "bad_answer", 1, "out_of_range"),
        ("infinity", "pending", "bad_answer", 1, "out_of_range"),
        ("out_of_range", "pending", "bad_answer", 1, "out_of_range"),
        ("missing", "pending", "bad_answer", 1, "invalid_json"),
        ("quota", "pending", "halted", 0, "credit"),
        ("401", "pending", "halted", 0, "key_refused"),
    ],
)
def test_a_rows_error_is_that_rows(
    world: World, services: Services, fault: str, state: str, kind: str, tries: int, outcome: str
) -> None:
    world.rows(3)
    world.fake.by_prompt["Row 1 "] = deque([fault])
    run_batches(services)
    for _ in range(3):
        run_batches(services)
    bad = world.item(1)
    assert world.calls() == {"batch ok": 2, f"batch {outcome}": 1}
    assert (bad["state"], bad["last_error_kind"], bad["tries"]) == (state, kind, tries)
    assert (world.incident() is not None) == (kind == "halted")
    world.secret()
    world.paid()
    if state == "pending":
        assert bad["params"] == {"direct": True}
        world.finish(services)
        world.settled()
        assert world.calls()["direct ok"] == 1


def test_a_server_that_knows_no_schema_is_asked_one_by_one(world: World, services: Services) -> None:
    world.fake.knows = "json_object"
    world.rows(2)
    run_batches(services)
    world.finish(services)
    world.settled()
    assert world.calls()["batch schema_unsupported"] == 2
    assert world.calls()["direct ok"] == 2


def test_an_answer_that_the_table_refuses_is_a_persons(world: World, services: Services) -> None:
    world.sql("alter table dashboard add check (vibe_score > 200)")
    world.rows(1)
    run_batches(services)
    world.finish(services)
    assert world.states() == {"failed": 1}
    assert world.calls() == {"batch unused": 1}
    world.paid()


# --- damaged files -------------------------------------------------------------------------------------------------


def spoil(world: World, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """The next output file is not what it should be."""
    real = world.provider._file

    def file(data: bytes, filename: str, purpose: str) -> dict[str, Any]:
        if filename.endswith("_output.jsonl"):
            data = b"\n".join(change(data.splitlines()))
        return real(data, filename, purpose)

    world.provider._file = file  # type: ignore[method-assign]


def line(**changes: object) -> Callable[[bytes], bytes]:
    return lambda good: json.dumps(json.loads(good) | changes).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[: len(good) // 2],
        lambda _: b"\xff\xfe\x00",
        lambda _: b"[" * 100_000,
        lambda _: b"null",
        lambda _: b"[]",
        lambda _: b"",
        line(custom_id=None),
        line(custom_id={"a": 1}),
        line(custom_id="1-99"),
        line(response="what"),
        line(response={"status_code": "200", "body": None}),
        line(response={"status_code": 200, "body": []}),
        line(response={"status_code": 200, "body": {"choices": [{"message": {"content": {"a": 1}}}]}}),
        line(response={"status_code": 200, "body": {"error": {"message": "rather private words", "code": 500}}}),
        line(response=None, error={"code": "request_timeout", "message": "rather private words"}),
        line(response=None, error="rather private words"),
    ],
)
def test_a_damaged_line_costs_its_own_row_only(
    world: World, services: Services, damage: Callable[[bytes], bytes]
) -> None:
    world.rows(4)
    spoil(world, lambda lines: [damage(lines[0]), *lines[1:]])
    run_batches(services)
    world.until_ended(services)
    assert world.states() == {"completed": 3, "pending": 1}
    assert [item["params"] for item in world.items() if item["state"] == "pending"] == [{"direct": True}]
    world.secret()
    world.finish(services)
    assert world.states() == {"completed": 4}
    assert world.calls()["direct ok"] == 1


def test_numbers_that_nobody_can_count(world: World, services: Services) -> None:
    def change(good: bytes) -> bytes:
        told = json.loads(good)
        told["response"]["body"]["usage"]["prompt_tokens"] = 10**30
        return json.dumps(told).encode()

    world.rows(3)
    spoil(world, lambda lines: [change(lines[0]), *lines[1:]])
    run_batches(services)
    world.until_ended(services)
    assert world.states()["completed"] == 2


def test_a_line_that_comes_twice_counts_once(world: World, services: Services) -> None:
    world.rows(3)
    spoil(world, lambda lines: [*lines, *lines])
    run_batches(services)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 3}


def test_a_file_that_is_larger_than_any(world: World, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_api, "_LARGEST", 100_000)
    world.rows(4)
    spoil(world, lambda lines: [*lines[:2], b" " * 200_000, *lines[2:]])
    run_batches(services)
    world.until_ended(services)
    assert world.states() == {"completed": 2, "pending": 2}
    assert world.calls() == {"batch ok": 2, "batch lost": 2}
    world.finish(services)
    assert world.states() == {"completed": 4}


def test_a_file_that_is_gone(world: World, services: Services) -> None:
    world.rows(2)
    run_batches(services)
    world.provider.faults["GET files/"] = deque([UNKNOWN])
    world.until_ended(services)
    assert world.states() == {"pending": 2}
    assert world.calls() == {"batch lost": 2}
    world.finish(services)
    assert world.states() == {"completed": 2}


def test_a_file_that_can_not_be_had_now(world: World, services: Services) -> None:
    world.rows(2)
    run_batches(services)
    for _ in range(2):
        run_batches(services)
    world.provider.faults["GET files/"] = deque([BROKEN])
    with pytest.raises(Transient, match="answered 500"):
        run_batches(services)
    assert world.states() == {"processing": 2}
    assert "answered 500" in world.batch()["message"]
    world.finish(services)
    world.settled()


# --- the provider in trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["POST files", "POST batches"])
@pytest.mark.parametrize(("answer", "held"), [(QUOTA, "credit"), (BUSY, "rate"), ((401, {}), "key")])
def test_what_holds_the_queue_is_told_once(
    world: World, services: Services, step: str, answer: Answer, held: str
) -> None:
    world.rows(3)
    world.provider.faults[step] = deque([answer])
    done = run_batches(services)
    assert done.held is not None
    assert [row["cause"] for row in world.sql("select cause from queue_holds")] == [held]
    assert (world.incident() is not None) == (held != "rate")
    assert (world.calls(), world.states()) == ({}, {"pending": 3})
    assert {(item["tries"], str(item["params"])) for item in world.items()} == {(0, "{}")}
    assert world.provider.files == {}
    assert run_batches(services) == Round()
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 3}


def test_a_key_that_is_refused_while_a_batch_is_out(world: World, services: Services) -> None:
    world.rows(3)
    run_batches(services)
    world.fake.key = "another"
    done = run_batches(services)
    assert done.held is not None
    assert world.incident() is not None
    world.fake.key = KEY
    world.finish(services)
    world.settled()


def test_a_provider_that_is_away(world: World, services: Services) -> None:
    away = world.services(openai_base_url=f"http://127.0.0.1:{free_port()}/v1")
    world.rows(3)
    with pytest.raises(Transient, match="can't be reached"):
        run_batches(away)
    assert (world.states(), world.calls()) == ({"pending": 3}, {})
    assert run_batches(away) == Round()  # not every minute
    assert world.direct(services) == 0
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 3}


def test_a_provider_that_goes_away_keeps_its_batch(world: World, services: Services) -> None:
    away = world.services(openai_base_url=f"http://127.0.0.1:{free_port()}/v1")
    world.rows(3)
    run_batches(services)
    with pytest.raises(Transient, match="can't be reached"):
        run_batches(away)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 3}


@pytest.mark.parametrize(("step", "answer"), [("POST files", UNKNOWN), ("POST batches", TOO_LARGE)])
def test_what_the_provider_can_not_do_is_asked_one_by_one(
    world: World, services: Services, step: str, answer: Answer
) -> None:
    world.provider.faults[step] = deque([answer])
    world.rows(3)
    with pytest.raises(Permanent, match="answered 40"):
        run_batches(services)
    assert world.direct(services) == 3
    world.settled()
    assert world.calls() == {"direct ok": 3}


def test_a_batch_that_was_made_although_the_answer_said_no(world: World, services: Services) -> None:
    world.provider.late["POST batches"] = deque([BROKEN])
    world.rows(3)
    with pytest.raises(Transient, match="answered 500"):
        run_batches(services)
    assert world.states() == {"processing": 3}
    world.finish(services)
    world.settled()
    assert len(world.provider.all) == 1


def test_one_batch_in_trouble_does_not_keep_the_others(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_MOST", 2)
    monkeypatch.setattr(batches, "_LEAST", 1)
    world.rows(4)
    run_batches(services)
    name = next(iter(world.provider.all))
    for _ in range(5):
        world.later()
        world.provider.faults[f"GET batches/{name}"] = deque([BROKEN])
        with pytest.raises(Transient):
            run_batches(services)
    assert world.states() == {"completed": 2, "processing": 2}
    world.rows(1, "new")
    world.provider.faults[f"GET batches/{name}"] = deque([BROKEN])
    with pytest.raises(Transient):
        run_batches(services)
    assert world.sql("select count(*) as n from llm_batches where state = 'submitted'") == [{"n": 2}]
    world.finish(services)
    world.settled()


# --- the budget ----------------------------------------------------------------------------------------------------


def test_the_budget_allows_only_some(world: World) -> None:
    services = world.services(llm_budget_daily=Decimal("0.0026"))  # an answer of 300 tokens costs 0.00024 here
    world.rows(20)
    done = run_batches(services)
    assert 0 < done.sent < 20
    assert done.held is not None
    assert "LLM_BUDGET_DAILY" in done.held
    assert world.incident() == done.held
    assert world.states() == {"processing": done.sent, "pending": 20 - done.sent}
    assert {str(item["params"]) for item in world.items()} == {"{}"}
    assert world.sql("select sum(cost) <= 0.0026 as kept from llm_calls") == [{"kept": True}]
    assert run_batches(services) == Round()
    world.finish(world.services())
    world.settled()
    assert world.calls() == {"batch ok": 20}


def test_a_spent_budget_sends_nothing(world: World) -> None:
    services = world.services(llm_budget_monthly=Decimal("0.0001"))
    world.rows(3)
    done = run_batches(services)
    assert (done.sent, world.states(), world.calls()) == (0, {"pending": 3}, {})
    assert world.incident() is not None
    assert world.provider.files == {}


# --- processes that die --------------------------------------------------------------------------------------------

SENDING = ["toban_open_batch", "toban_begin_batch", "upload", "create", "toban_batch_submitted"]
TAKING = ["toban_take_batch", "find", "toban_batch_items", "lines", "toban_finish", "toban_end_call", "toban_retry"]
TAKING += ["toban_end_batch", "forget"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", SENDING)
def test_the_sender_dies(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    world.rows(5)
    with monkeypatch.context() as patch:
        dies(patch, services, step, when)
        with pytest.raises(Killed):
            run_batches(services)
    assert world.direct(services) == 0
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 5}
    assert len(world.provider.all) == 1
    assert {item["tries"] for item in world.items()} == {1}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", TAKING)
def test_the_taker_dies(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    world.rows(5)
    world.fake.by_prompt["Row 4 "] = deque(["500"])
    run_batches(services)
    run_batches(services)
    run_batches(services)
    with monkeypatch.context() as patch:
        dies(patch, services, step, when)
        with pytest.raises(Killed):
            run_batches(services)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 4, "batch server_error": 1, "direct ok": 1}
    assert world.batch()["answered"] == 4
    assert len(world.provider.all) == 1


def test_whoever_cancels_dies(world: World, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    world.rows(4)
    run_batches(services)
    run_batches(services)
    world.sql("update llm_batches set leave_by = now()")
    with monkeypatch.context() as patch:
        dies(patch, services, "cancel", "after")
        with pytest.raises(Killed):
            run_batches(services)
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 2, "batch unanswered": 2, "direct ok": 2}


def test_a_lost_batch_is_found_among_many(world: World, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    world.rows(2)
    with monkeypatch.context() as patch:
        dies(patch, services, "create", "after")
        with pytest.raises(Killed):
            run_batches(services)
    (mine,) = world.provider.all.values()
    for number in range(150):
        world.provider.all[f"other_{number}"] = mine | {"id": f"other_{number}", "metadata": None}
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 2}


def test_a_sender_that_slept_too_long_cancels_what_it_made(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows(2)
    real = batch_api.BatchApi.create

    def create(self: batch_api.BatchApi, file: str, uid: str) -> Any:
        monkeypatch.undo()
        world.later()
        run_batches(world.services())
        return real(self, file, uid)

    monkeypatch.setattr(batch_api.BatchApi, "create", create)
    run_batches(services)
    assert [batch["status"] for batch in world.provider.all.values()] == ["cancelling"]
    assert world.states() == {"pending": 2}
    world.finish(services)
    world.settled()


def test_the_ledger_goes_away_while_answers_are_read(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows(5)
    world.fake.by_prompt["Row 4 "] = deque(["500"])
    run_batches(services)
    for _ in range(2):
        run_batches(services)
    real = services.database.call

    def call(function: str, **params: Any) -> Any:
        if function == "toban_end_call":
            raise Transient("the database is away")
        return real(function, **params)

    monkeypatch.setattr(services.database, "call", call)
    with pytest.raises(TobanError, match="away"):
        run_batches(services)
    monkeypatch.undo()
    assert world.states() == {"completed": 4, "processing": 1}
    world.finish(services)
    world.settled()


def test_two_runs_at_once(world: World, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST", 20)
    monkeypatch.setattr(batches, "_LEAST", 1)
    world.rows(90)
    other = world.services()
    for _ in range(6):
        at_once(lambda: run_batches(services), lambda: run_batches(other))
    world.finish(services)
    world.settled()
    assert world.calls() == {"batch ok": 90}
    assert set(world.fake.billed.values()) == {1}


def test_an_erased_device_is_called_back_and_its_files_go(world: World) -> None:
    """So does what earlier batches have left at the provider."""
    services = world.services()
    world.rows(60)
    run_batches(services)
    assert world.batch()["leave_by"] > datetime.now(UTC)
    erased = services.database.call("toban_erase", device="d", zone="UTC")["counts"]
    assert (erased["dashboard"], erased["batches_called_back"], erased["llm_calls"]) == (60, 1, 60)
    assert world.batch()["leave_by"] <= datetime.now(UTC)
    assert batches.forget_leftovers(services.settings, services.database) == 0  # it is out
    world.until_ended(services)
    assert world.provider.files == {}
    assert world.sql("select 1 from dashboard where device_id = 'd'") == []
    assert set(world.calls()) <= {"batch unanswered", "batch unused"}

    with world.fake.lock:
        world.provider._file(b"private words", "toban-of-long-ago.jsonl", "batch")
        world.provider._file(b"private words", f"{world.batch()['provider_id']}_output.jsonl", "batch_output")
        world.provider._file(b"somebody else's", "notes.jsonl", "batch")
    assert batches.forget_leftovers(services.settings, services.database) == 2
    assert [file["filename"] for file in world.provider.files.values()] == ["notes.jsonl"]
    assert batches.forget_leftovers(world.services(openai_api_key=None, openai_base_url=None).settings,
                                    services.database) == 0  # fmt: skip
