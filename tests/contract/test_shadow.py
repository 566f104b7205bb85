"""Shadow mode, take-over, rollback, and two systems at once, over both transports."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from app.database.supabase import SupabaseDatabase
from app.doctor.ledger import work
from app.errors import Permanent
from app.jobs import in_timetable
from app.readiness import parts_of
from app.settings import Ledger as LedgerSettings
from app.sources import load_sources
from tests.support.ledger import NOON, Attempt, Ledger, Row, at_once
from tests.support.old_cron import TOKYO, OldCron, Rest, Sql, Way, blocks
from tests.support.servers import PostgREST, key_of

TWIN = "shadow_transcription"
# What the old systems and other apps keep; `transcripts` is Toban's own result.
TABLES = ("audio_files", "vibe_whisper", "dashboard", "transcripts", "prompted_blocks")


def shadow(ledger: Ledger, *sources: str, limit: int = 0) -> list[str]:
    """As a worker with TOBAN_SHADOW does when it starts."""
    answer = ledger.call("sync_modes", shadow=list(sources or ["transcription"]), limit=limit, zone="Asia/Tokyo")
    return list(answer["shadowed"])


def set_mode(ledger: Ledger, mode: str, source: str = "transcription", **params: object) -> Row:
    return dict(ledger.call("set_mode", source=source, mode=mode, who="ann", **params))


def old_cron(ledger: Ledger, key: str, text: str = "hello there") -> None:
    """The old system completes a row, as it always has: the text first, then the status."""
    device, at = key.split("/")
    upsert(ledger, device, at, text)
    ledger.set_status("completed", key)


def upsert(ledger: Ledger, device: str, at: str, text: str) -> None:
    ledger.sql(
        """insert into vibe_whisper
           select %s, (m at time zone 'Asia/Tokyo')::date,
                  to_char(date_bin('30 min', m at time zone 'Asia/Tokyo', '2000-01-01'), 'HH24-MI'), %s
           from (select %s::timestamptz as m) x
           on conflict (device_id, date, time_block) do update set transcription = excluded.transcription""",
        device, text, at,
    )  # fmt: skip


def twin(key: str, source: str = "transcription") -> str:
    return f"{source}/{key.replace('/', '%2F')}"


def snapshot(ledger: Ledger) -> dict[str, Any]:
    """Every row of the apps' tables, with the transaction that last wrote it."""
    return {
        table: ledger.one(
            "select coalesce(json_agg(x order by x::text), '[]')::text from (select xmin::text, * from "
            + table + ") x"
        )
        for table in TABLES
    }  # fmt: skip


def compared(ledger: Ledger, attempt: Attempt, **row: object) -> Row:
    result = {"row": {"ours": {"text": "hello there"}, "verdict": "identical", "difference": 0, "seconds": 1.5, **row}}
    return dict(ledger.call("finish", **attempt.ids(), result=result))


def modes(ledger: Ledger, source: str = "transcription") -> Row:
    return next(one for one in ledger.call("modes")["modes"] if one["source"] == source)


def collisions(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row["key"], row["kind"]) for row in ledger.sql("select * from work_collisions order by id")]


def test_what_the_old_cron_completed_is_done_again_and_changes_nothing(ledger: Ledger) -> None:
    assert shadow(ledger) == ["transcription"]
    assert shadow(ledger) == []
    key = ledger.file()
    ledger.heartbeat()
    assert ledger.claim_answer() == {"items": [], "found": 0, "reason": "shadow"}
    assert ledger.claim(source=TWIN) == []
    old_cron(ledger, key)
    before = snapshot(ledger)

    attempt = ledger.running(TWIN)
    kept = attempt.answer["row"]
    assert (kept["row"]["file_path"], kept["theirs"]) == ("audio.wav", {"text": "hello there"})
    assert attempt.answer["at"].startswith("2025-07-18T03:00:00")
    ledger.end("retry", attempt)
    assert compared(ledger, ledger.running(TWIN))["state"] == "completed"

    assert snapshot(ledger) == before
    [row] = ledger.sql("select * from shadow_rows")
    assert (row["status"], row["verdict"], row["ours"]) == ("completed", "identical", {"text": "hello there"})
    assert ledger.state(key) == "completed"
    assert collisions(ledger) == []
    assert ledger.call("modes")["modes"][1]["elsewhere"] == 1


@pytest.mark.parametrize("how", ["fail", "skip"])
def test_a_comparison_that_fails_changes_nothing_either(ledger: Ledger, how: str) -> None:
    shadow(ledger)
    key = ledger.file()
    old_cron(ledger, key)
    before = snapshot(ledger)
    ledger.end(how, ledger.running(TWIN))
    assert snapshot(ledger) == before
    [found] = ledger.call("shadow_report")["sources"]
    assert (found["rows"], found["missing"], found["waiting"]) == (1, 1, 0)
    [difference] = ledger.call("shadow_report")["differences"]
    assert (difference["key"], difference["reason"]) == (key, "it broke")


def test_a_row_that_is_completed_again_is_compared_again(ledger: Ledger) -> None:
    shadow(ledger)
    key = ledger.file()
    old_cron(ledger, key, "one")
    first = ledger.running(TWIN)
    ledger.set_status("pending", key)
    old_cron(ledger, key, "two")
    assert not compared(ledger, first)["written"], "what it was compared with is out of date"
    attempt = ledger.running(TWIN)
    assert attempt.answer["row"]["theirs"] == {"text": "two"}
    assert compared(ledger, attempt)["written"]


def test_an_analysis_is_kept_with_its_result(ledger: Ledger) -> None:
    shadow(ledger, "analysis")
    key = ledger.block()
    ledger.sql(
        "update dashboard set status = 'completed', vibe_score = -30, summary = 's',"
        " created_at = now() - interval '1 h', processed_at = now() - interval '10 min'"
    )
    ledger.heartbeat(queues=["gpt"])
    [item] = ledger.claim(source="shadow_analysis", queue="gpt")
    attempt = ledger.start(item)
    row = attempt.answer["row"]
    assert (row["key"], row["row"]["prompt"], row["theirs"]["vibe_score"]) == (key, "How was it?", -30)
    assert row["their_seconds"] == pytest.approx(3000, abs=60)
    # A paid call counts, and ends with the comparison.
    call = ledger.call("begin_call", **attempt.ids(), model="m", cost="0.5", zone="UTC")["call"]
    result = {"row": {"verdict": "near", "difference": 4}, "call": {"call": call, "outcome": "ok", "cost": "0.25"}}
    assert ledger.call("finish", **attempt.ids(), result=result)["written"]
    [found] = ledger.call("shadow_report", source="analysis")["sources"]
    assert (found["near"], found["cost"]) == (1, 0.25)
    assert ledger.call("spending", zone="UTC")["today"] == 0.25


def test_nothing_is_planned_batched_or_asked_for_again(ledger: Ledger) -> None:
    key, block = ledger.file(), ledger.block("d2")
    ledger.finish(ledger.running())
    assert ledger.call("unprompted_blocks", zone="Asia/Tokyo", limit=9)["blocks"] != []
    shadow(ledger, "transcription", "analysis")
    before = snapshot(ledger)
    assert ledger.call("unprompted_blocks", zone="Asia/Tokyo", limit=9)["blocks"] == []
    batch = {"limit": 9, "least": 1, "patience": 0, "pause": 0, "stay": 3600, "deadline": 7200, "busy": 60}
    opened = ledger.call("open_batch", source="analysis", queue="gpt", model="m", max_attempts=5, **batch)
    assert opened == {"batch": None, "reason": "shadow"}
    for function in ("reprocess", "retry_items"):
        with pytest.raises(Permanent, match=r"transcription is in shadow mode.*toban takeover"):
            ledger.call(function, source="transcription", keys=[key])
    assert snapshot(ledger) == before
    assert ledger.state(block, "analysis") == "pending"


def test_the_limit_bounds_what_is_compared(ledger: Ledger) -> None:
    shadow(ledger, limit=2)
    ledger.files("d1", 5)
    ledger.set_status("completed")
    assert ledger.one("select count(*) from shadow_rows") == 2
    ledger.sql("update shadow_rows set completed_at = now() - interval '25 h'")
    ledger.file("d2")
    ledger.set_status("completed", f"d2/{NOON}")
    assert ledger.one("select count(*) from shadow_rows") == 3
    assert ledger.one("select count(*) from work_items where source = 'transcription' and state = 'completed'") == 6


def test_a_row_that_is_deleted_has_nothing_kept(ledger: Ledger) -> None:
    shadow(ledger)
    old_cron(ledger, ledger.file())
    ledger.sql("delete from audio_files")
    assert ledger.sql("select * from shadow_rows") == []
    assert ledger.claim(source=TWIN) == []


def test_a_take_over_claims_from_the_next_tick_on(ledger: Ledger) -> None:
    shadow(ledger)
    old_cron(ledger, ledger.file("d1"))
    key = ledger.file("d2")
    running = ledger.running(TWIN)
    old_cron(ledger, ledger.file("d3"))
    answer = set_mode(ledger, "live")
    assert answer == {"mode": "live", "changed": True, "released": 0, "running": 0, "dropped": 2}
    assert not compared(ledger, running)["written"], "it is not compared any more"
    assert ledger.claim(source=TWIN) == []
    assert ledger.finish(ledger.running())["written"]
    assert ledger.status_of(key) == "completed"
    # What somebody has decided, no setting changes.
    assert shadow(ledger) == []
    assert (modes(ledger)["mode"], modes(ledger)["by"]) == ("live", "ann")
    entry = ledger.call("audited", target="transcription")["entries"][0]
    assert (entry["who"], entry["what"], entry["details"]["mode"]) == ("ann", "take over", ["shadow", "live"])
    assert not set_mode(ledger, "live")["changed"]


@pytest.mark.parametrize("running", ["finishes", "is given back"])
def test_a_rollback_leaves_the_rows_to_the_old_cron(ledger: Ledger, running: str) -> None:
    release = running == "is given back"
    runs, sent, waits = (ledger.file(device) for device in ("d1", "d2", "d3"))
    attempt = ledger.running(slots=2)
    ledger.heartbeat(slots=2)
    [message] = ledger.claim(1)
    answer = set_mode(ledger, "shadow", release=release)
    assert (answer["released"], answer["running"]) == ((2, 0) if release else (1, 1))
    assert ledger.claim_answer()["reason"] == "shadow"
    assert not ledger.start_answer(message, "00000000-0000-0000-0000-000000000001")["started"]
    assert ledger.status_of(sent) == ledger.status_of(waits) == "pending"
    assert ledger.finish(attempt)["written"] is not release
    assert ledger.status_of(runs) == ("pending" if release else "completed")
    assert ledger.consistent()


def test_a_setting_turns_a_source_that_nobody_decided_about(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    [message] = ledger.claim()
    assert shadow(ledger) == ["transcription"]
    assert not ledger.start_answer(message, "00000000-0000-0000-0000-000000000001")["started"]
    assert modes(ledger)["by"] == "TOBAN_SHADOW"


def test_a_source_that_there_is_not(ledger: Ledger) -> None:
    for source in ("nothing", TWIN):
        with pytest.raises(Permanent, match=r"no source .*analysis, transcription"):
            set_mode(ledger, "shadow", source)


def test_the_old_cron_completes_what_toban_runs(ledger: Ledger) -> None:
    key = ledger.file()
    attempt = ledger.running()
    old_cron(ledger, key, "theirs")
    answer = ledger.finish(attempt, "ours")
    assert (answer["written"], answer["reason"]) == (False, "another attempt owns the item: it is completed")
    assert collisions(ledger) == [(key, "during")]
    assert ledger.one("select transcription from vibe_whisper") == "theirs"


def test_the_old_cron_completes_what_toban_has_completed(ledger: Ledger) -> None:
    """It had read the row as pending before."""
    key = ledger.file()
    attempt = ledger.running()
    device, at = key.split("/")
    upsert(ledger, device, at, "theirs")
    assert ledger.finish(attempt, "ours")["written"]
    assert collisions(ledger) == []
    ledger.set_status("completed", key)
    ledger.set_status("completed", key)
    assert collisions(ledger) == [(key, "after")]
    told = modes(ledger)
    assert (told["collisions"], told["elsewhere"]) == (1, 0)


def test_both_complete_a_row_whose_trigger_was_off(ledger: Ledger) -> None:
    ledger.file()
    attempt = ledger.running()
    ledger.sql("alter table audio_files disable trigger toban_transcription_update")
    try:
        ledger.set_status("completed")
    finally:
        ledger.sql("alter table audio_files enable trigger toban_transcription_update")
    ledger.finish(attempt)
    assert [kind for _, kind in collisions(ledger)] == ["after"]


def test_what_is_no_collision(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.finish(ledger.running())
    ledger.sql("update audio_files set file_path = file_path")
    ledger.set_status("pending", key)
    old_cron(ledger, key)  # it was not claimed
    ledger.set_status("completed", key)  # nor is it ours any more
    other = ledger.file("d2")
    ledger.end("fail", ledger.running())
    ledger.set_status("completed", other)  # by hand
    assert collisions(ledger) == []


def test_an_old_cron_that_goes_on_is_an_incident_until_it_stops(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.running()
    old_cron(ledger, key)
    assert ledger.call("upkeep_shadow", days=90)["alarms"] == 1
    assert ledger.call("upkeep_shadow", days=90)["alarms"] == 0
    [row] = ledger.sql("select * from job_status where job_key = 'old-cron-transcription'")
    assert row["last_status"] == "error"
    assert "toban rollback transcription" in row["last_message"]
    assert ledger.call("monitor")["opened"] == ["job/old-cron-transcription"]
    ledger.sql("update work_collisions set at = now() - interval '3 h'")
    ledger.call("upkeep_shadow", days=90)
    assert ledger.one("select last_status from job_status where job_key = 'old-cron-transcription'") == "success"


def test_old_comparisons_are_forgotten(ledger: Ledger) -> None:
    shadow(ledger)
    ledger.files("d1", 3)
    ledger.set_status("completed")
    ledger.sql("update shadow_rows set completed_at = now() - interval '91 days' where at < '2025-07-18T00:03Z'")
    assert ledger.call("upkeep_shadow", days=90)["rows"] == 0, "what waits or runs is never old"
    ledger.sql("update shadow_rows set status = 'failed'")
    assert ledger.call("upkeep_shadow", days=90, limit=1)["more"]
    assert ledger.call("upkeep_shadow", days=90)["rows"] == 1
    assert ledger.one("select count(*) from shadow_rows") == 1


@pytest.mark.parametrize("source", ["transcription", "analysis"])
def test_comparisons_are_kept_no_longer_than_what_they_are_of(ledger: Ledger, source: str) -> None:
    shadow(ledger, source)
    if source == "analysis":
        ledger.block(date="2025-07-18")
        ledger.sql("update dashboard set status = 'completed'")
        days = {"prompts_days": 7}
    else:
        old_cron(ledger, ledger.file())
        days = {"transcripts_days": 7}
    kept = {"items_days": 999, "runs_days": 999, "zone": "Asia/Tokyo"}
    ledger.call("retention", **kept, **days)
    assert ledger.one("select count(*) from shadow_rows") == 1, "it waits"
    ledger.sql("update shadow_rows set status = 'failed'")
    name = {"transcription": "compared_texts", "analysis": "compared_prompts"}[source]
    assert ledger.call("retention", **kept, **days, dry=True)[name] == 1
    assert ledger.call("retention", **kept, transcripts_days=99999, prompts_days=99999)[name] == 0
    assert ledger.call("retention", **kept, **days)[name] == 1
    assert ledger.one("select count(*) from shadow_rows") == 0


def test_what_the_other_system_has_to_do_is_nobodys_alarm(ledger: Ledger) -> None:
    load_sources(LedgerSettings(_env_file=None))
    ledger.heartbeat()
    ledger.file()
    ledger.sql("update work_items set opened_at = now() - interval '2 h', available_at = now() - interval '2 h'")

    def told() -> tuple[int, bool, bool, set[str]]:
        ledger.sql("delete from metric_snapshot")
        waiting = ledger.call("metrics")["picture"]["waiting"]["transcription"]
        status, health = ledger.call("status"), ledger.call("health")
        found = {one.code for one in work(status, health, datetime.fromisoformat(status["now"]))}
        return waiting["due"], waiting["since"] is not None, parts_of(health)["rows"].fine, found & {"D403"}

    assert told() == (1, True, False, {"D403"})
    pause(ledger, enabled=False)
    assert told() == (0, True, True, {"D403"})
    pause(ledger, enabled=True)
    shadow(ledger)
    assert told() == (0, False, True, set())


def test_a_pause_holds_for_comparisons(ledger: Ledger) -> None:
    shadow(ledger)
    old_cron(ledger, ledger.file())
    ledger.heartbeat()
    pause(ledger, enabled=False)
    for source in ("transcription", TWIN):
        answer = ledger.claim_answer(source=source)
        assert (answer["items"], answer["reason"]) == ([], "paused")
    (health,) = [one for one in ledger.call("health")["sources"] if one["source"] == TWIN]
    assert (health["paused"], health["shadow"]) == (True, False)
    pause(ledger, enabled=True)
    assert ledger.claim_answer(source="transcription")["reason"] == "shadow"
    assert len(ledger.claim_answer(source=TWIN)["items"]) == 1


def pause(ledger: Ledger, *, enabled: bool) -> None:
    ledger.call("sync_jobs", jobs=list(in_timetable().values()))
    ledger.call("edit_job", job="transcription", enabled=enabled)


def test_texts_are_told_only_to_who_asks(ledger: Ledger) -> None:
    shadow(ledger)
    old_cron(ledger, ledger.file("d1"), "a secret")
    old_cron(ledger, ledger.file("d2"), "another")
    for _ in range(2):
        compared(ledger, ledger.running(TWIN), verdict="different", difference=0.9, ours={"text": "a whisper"})
    words = json.dumps(ledger.call("shadow_report"))
    assert "secret" not in words
    assert "whisper" not in words
    report = ledger.call("shadow_report", device="d1", texts=True)
    assert [one["rows"] for one in report["sources"]] == [1]
    [row] = report["differences"]
    assert (row["theirs"]["text"], row["ours"]["text"]) == ("a secret", "a whisper")
    assert ledger.call("shadow_report", since="2100-01-01T00:00:00Z")["sources"] == []
    assert len(ledger.call("shadow_report", limit=1)["differences"]) == 1


def test_trouble_in_the_comparison_does_not_disturb_the_app(ledger: Ledger) -> None:
    shadow(ledger)
    key = ledger.file()
    with ledger.altered("alter table shadow_rows rename to away", "alter table away rename to shadow_rows"):
        ledger.set_status("completed", key)
        ledger.sql("delete from audio_files")
    assert ledger.state(key) == "completed"


def test_a_rollback_waits_for_a_claim_that_has_begun(ledger: Ledger) -> None:
    """What it takes is given back too."""
    key = ledger.file()
    ledger.heartbeat()
    asked = {"source": "transcription", "queue": "whisper", "limit": 1, "lease": 30, "max_attempts": 5}
    with psycopg.connect(ledger.url) as claiming:
        claiming.execute("select toban_claim(%s)", [Jsonb(asked)])

        def commit() -> None:
            deadline = time.monotonic() + 5
            while not ledger.waits("advisory") and time.monotonic() < deadline:
                time.sleep(0.01)
            claiming.commit()

        answer, _ = at_once(lambda: set_mode(ledger, "shadow"), commit)
    assert answer["released"] == 1
    assert ledger.item(key)["claim_no"] == 1
    assert ledger.state(key) == "pending"


ORDERS: tuple[LiteralString, ...] = ("app first", "toban first")


@pytest.mark.parametrize("order", ORDERS)
def test_both_write_at_the_same_moment(ledger: Ledger, order: str) -> None:
    """One holds the row's lock when the other comes: whoever is second finds the first one's end."""
    key = ledger.file()
    attempt = ledger.running()
    with psycopg.connect(ledger.url) as app:
        if order == "toban first":
            assert ledger.finish(attempt)["written"]
            app.execute("update audio_files set transcriptions_status = 'completed'")
            app.commit()
            assert collisions(ledger) == [(key, "after")]
        else:
            app.execute("update audio_files set transcriptions_status = 'completed'")

            def commit() -> None:
                while not ledger.waits("transactionid"):
                    pass
                app.commit()

            answer, _ = at_once(lambda: ledger.finish(attempt), commit)
            assert not answer["written"]
            assert collisions(ledger) == [(key, "during")]


@pytest.fixture(params=["audio_files", "dashboard"])
def old(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[OldCron]:
    """The old program of each source, over the transport that Toban uses too."""
    way: Way = Sql(ledger.url)
    if isinstance(ledger.db, SupabaseDatabase):
        server: PostgREST = request.getfixturevalue("postgrest")
        way.close()
        way = Rest(server.url, key_of("service_role"))
    yield OldCron(way, request.param)
    way.close()


@dataclass
class Toban:
    """Works like a worker on the same rows as an `OldCron`, one after another."""

    ledger: Ledger
    source: str
    begun: set[str] = field(default_factory=set)

    @classmethod
    def beside(cls, old: OldCron, ledger: Ledger) -> "Toban":
        return cls(ledger, "transcription" if old.table == "audio_files" else "analysis")

    def begin(self) -> Attempt | None:
        self.ledger.heartbeat()
        items = self.ledger.claim(1, self.source)
        if not items:
            return None
        answer = self.ledger.start_answer(items[0], token := str(uuid.uuid4()))
        if not answer["started"]:
            return None
        self.begun.add(items[0]["key"])
        return Attempt(items[0]["id"], answer["attempt"], token, answer)

    def finish(self, attempt: Attempt) -> bool:
        at = datetime.fromisoformat(attempt.answer["at"]) if attempt.answer["at"] else None
        block = f"{at.astimezone(TOKYO):%H-%M}" if at else ""
        params = {} if at else {"result": {"row": {"vibe_score": 5, "summary": "loud"}}}
        return bool(self.ledger.finish(attempt, "ours", block, **params)["written"])

    def loop(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if attempt := self.begin():
                time.sleep(0.004)
                self.finish(attempt)


def put(ledger: Ledger, old: OldCron, count: int) -> None:
    for at in blocks(datetime(2025, 7, 18, tzinfo=UTC), count):
        if old.table == "audio_files":
            ledger.file("d1", at.isoformat())
        else:
            ledger.block("d1", f"{at:%H-%M}", date=str(at.date()))


def test_an_old_cron_that_is_quicker(ledger: Ledger, old: OldCron) -> None:
    put(ledger, old, 1)
    toban = Toban.beside(old, ledger)
    attempt = toban.begin()
    assert attempt
    old.run()
    assert not toban.finish(attempt)
    assert collisions(ledger) == [(old.completed[0], "during")]


def test_an_old_cron_that_is_slower(ledger: Ledger, old: OldCron) -> None:
    put(ledger, old, 1)
    [row] = old.way.pending(old.table)
    toban = Toban.beside(old, ledger)
    attempt = toban.begin()
    assert attempt
    assert toban.finish(attempt)
    old.write(row)
    old.mark(row)
    assert collisions(ledger) == [(old.completed[0], "after")]


def test_both_work_on_the_same_rows_at_once(ledger: Ledger, old: OldCron) -> None:
    """What both have worked on is known, row by row, and nothing else is called a collision."""
    put(ledger, old, 30)
    old.think = 0.004
    read = old.way.pending(old.table)
    toban, stop = Toban.beside(old, ledger), threading.Event()

    def until_done() -> None:
        done = "select count(*) = 30 from work_items where state = 'completed'"
        with psycopg.connect(ledger.url, autocommit=True) as watch:
            while watch.execute(done).fetchone() != (True,):
                time.sleep(0.02)
        stop.set()

    first = toban.begin()  # so that there is one at least
    assert first
    assert toban.finish(first)

    def cron() -> None:
        old.work(read)
        old.loop(stop)

    at_once(cron, lambda: toban.loop(stop), until_done)
    assert len(toban.begun | set(old.completed)) == 30
    assert {key for key, _ in collisions(ledger)} == toban.begun & set(old.completed)
    assert len(collisions(ledger)) == len(toban.begun & set(old.completed)) > 0
