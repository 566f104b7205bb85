"""Everything of a device goes, over both transports; a receipt stays."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from redis import Redis as Client

from app import erase as erasing
from app.cli import main
from app.database import Database
from app.erase import Eraser, Wanted, seal
from app.errors import Transient
from app.retention import delete_audio
from app.settings import GROUPS, Settings
from tests.support.ledger import NOON, Ledger
from tests.support.servers import ROOT, Redis, wait_for

import tasks  # noqa: F401 isort:skip - registers the sources

DEVICE, OTHER = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "other"
DAY, NEXT = "2025-07-18", "2025-07-19"
# What is left of a device although it was erased.
KEPT = {"erasures", "private_tables", "toban_sources"}
# Tables whose columns device_id, key, ref or partition are nothing that a person said or did.
NOTHING_PRIVATE = {"web_keys", "private_tables"}


@pytest.fixture
def settings(clean_url: str, redis_server: Redis, tmp_path: Path) -> Settings:
    values: dict[str, dict[str, Any]] = {
        "database": {"database_url": clean_url},
        "broker": {"url": redis_server.url},
        "audio": {"audio_folder": str(tmp_path)},
    }
    return Settings(**{name: group(_env_file=None, **values.get(name, {})) for name, group in GROUPS.items()})


@pytest.fixture
def eraser(db: Database, settings: Settings) -> Callable[..., Eraser]:
    return lambda device=DEVICE, **wanted: Eraser(db, settings, Wanted(device, **wanted))


def put(folder: Path, path: str) -> Path:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"RIFF")
    return folder / path


def live(ledger: Ledger, device: str, day: str = DAY) -> None:
    """A device's day: heard, asked about, judged; one recording fails, one waits with a part of it saved."""
    at = [f"{day}T{hour:02}:00:00Z" for hour in (3, 4, 5)]
    ledger.heartbeat(slots=4)
    for moment in at[:1]:
        ledger.file(device, moment, path=f"files/{device}/{day}/12-00/audio.wav")
    (item,) = ledger.claim(1)
    run = ledger.start(item)
    text = f"what {device} said"
    result = {"date": day, "time_block": "12-00", "text": text, "segments": [{"start": 0, "end": 1, "text": text}],
              "duration_seconds": 1.0, "model": "m", "engine": "e"}  # fmt: skip
    assert ledger.call("finish", **run.ids(), result=result)["written"]
    blocks = ledger.call("unprompted_blocks", zone="Asia/Tokyo", limit=9, days=9999)["blocks"]
    ledger.call("write_prompts", blocks=[{**block, "prompt": block["transcription"]} for block in blocks])
    run = ledger.start(ledger.claim(1, "analysis")[0])
    call = ledger.call("begin_call", **run.ids(), model="m", cost=0.5, zone="UTC")["call"]
    told = {"call": call, "outcome": "ok", "cost": 0.5}
    ledger.call("finish", **run.ids(), result={"row": {"summary": text, "vibe_score": 1.0}, "call": told})
    ledger.file(device, at[1], path=f"files/{device}/{day}/13-00/audio.wav")
    ledger.end("fail", ledger.start(ledger.claim(1)[0]), error=f"files/{device}/x.wav is corrupt")
    ledger.file(device, at[2])
    run = ledger.start(ledger.claim(1)[0])
    ledger.call("save_part", **run.ids(), data={"text": text})
    ledger.end("retry", run, at="2999-01-01T00:00:00Z")
    ledger.call("sync_jobs", jobs=[{"job": "transcription", "title": "T", "source": "transcription", "every": 60}])
    ledger.call("report")
    ledger.call("monitor")


def compare(ledger: Ledger, device: str, day: str = DAY) -> None:
    """The old programs did a recording and a block; ours is on the way, in the shadow."""
    for source in ("transcription", "analysis"):
        ledger.call("set_mode", source=source, mode="shadow", who="me")
    ledger.file(device, f"{day}T07:00:00Z")
    ledger.sql("update audio_files set transcriptions_status = 'completed' where recorded_at = %s", f"{day}T07:00:00Z")
    ledger.block(device, "16-00", f"what {device} said", day)
    ledger.sql("update dashboard set status = 'completed', summary = %s where time_block = '16-00'", f"of {device}")
    ledger.sql("delete from source_modes")


def everything(ledger: Ledger) -> dict[str, str]:
    """Every table as text."""
    names = [row["n"] for row in ledger.sql("select relname as n from pg_class where relkind = 'r'"
                                            " and relnamespace = 'public'::regnamespace")]  # fmt: skip
    return {
        name: str(ledger.one(f"select coalesce(string_agg(t::text, ' '), '') from public.{name} t")) for name in names
    }


def test_every_table_is_searched_and_the_rest_stays(
    ledger: Ledger, eraser: Callable[..., Eraser], tmp_path: Path, redis_server: Redis
) -> None:
    for device in (DEVICE, OTHER):
        live(ledger, device)
        compare(ledger, device)
    ledger.sql("insert into work_collisions (source, key, attempt, kind) values ('transcription', %s, 1, 'after')",
               f"{DEVICE}/{NOON}")  # fmt: skip
    put(tmp_path, f"files/{DEVICE}/{DAY}/12-00/audio.wav")
    put(tmp_path, f"files/{DEVICE}/{DAY}/18-00/no-row.wav")
    kept = put(tmp_path, f"files/{OTHER}/{DAY}/12-00/audio.wav")
    spent = ledger.one("select sum(cost) from llm_calls")
    before = everything(ledger)
    found = eraser(audio=True).preview()
    assert everything(ledger) == before  # a dry run
    receipt = eraser(audio=True).erase("me")
    after = everything(ledger)
    assert [name for name, text in after.items() if DEVICE in text] == []
    assert {name for name, text in before.items() if OTHER in text} == {
        name for name, text in after.items() if OTHER in text
    }
    assert ledger.one("select text from transcripts") == f"what {OTHER} said"
    assert (ledger.one("select sum(cost) from llm_calls"), ledger.one("select count(*) from llm_calls")) == (spent, 2)
    assert kept.exists()
    assert [path for path in tmp_path.rglob("*") if DEVICE in str(path)] == []

    assert receipt["sha256"] == seal(receipt)
    assert DEVICE not in json.dumps(receipt)
    assert {name: n for name, n in found.items() if n and name not in {"audio", "audio_without_row", "mentions"}} == {
        name: n for name, n in receipt["erased"].items() if name not in {"audio", "mentions", "deleted_audio"}
    }
    assert receipt["erased"]["transcripts"] == receipt["erased"]["vibe_whisper"] == 1
    assert (receipt["erased"]["audio_files"], receipt["erased"]["saved_parts"]) == (4, 1)
    assert (receipt["erased"]["shadow_rows"], receipt["erased"]["work_collisions"]) == (2, 1)
    assert receipt["erased"]["audio"] == 5
    (entry,) = [one for one in ledger.call("audited")["entries"] if one["what"] == "erase"]
    assert (entry["who"], entry["target"]) == ("me", f"device sha256:{Wanted(DEVICE).sha256}")
    (row,) = ledger.call("erasures", device_sha256=Wanted(DEVICE).sha256)["erasures"]
    assert row["receipt"] == receipt

    assert not any(eraser().preview().values())
    assert eraser().erase("me")["erased"] == {}


def test_a_part_of_the_days(ledger: Ledger, eraser: Callable[..., Eraser]) -> None:
    from datetime import date

    live(ledger, DEVICE)
    live(ledger, DEVICE, NEXT)
    for when in (DAY, NEXT):
        compare(ledger, DEVICE, when)
    day = date.fromisoformat(DAY)
    receipt = eraser(since=day, until=day).erase("me")
    assert receipt["erased"]["audio_files"] == 4
    assert receipt["erased"]["shadow_rows"] == 2
    assert (receipt["since"], receipt["until"]) == (DAY, DAY)
    for table in ("transcripts", "vibe_whisper", "dashboard", "prompted_blocks"):
        assert {str(row["date"]) for row in ledger.sql(f"select date from {table}")} == {NEXT}
    assert not ledger.sql("select from work_items where key like %s", f"%/{DAY}%")
    assert ledger.one("select count(*) from audio_files") == 4
    assert not ledger.sql("select from work_items where key like %s", f"%{DAY}%")
    assert ledger.one("select count(*) from llm_calls where key <> ''") == 1


def test_a_running_item_writes_nothing_afterwards(ledger: Ledger, eraser: Callable[..., Eraser]) -> None:
    ledger.file(DEVICE)
    hearing = ledger.running()
    ledger.block(DEVICE)
    judging = ledger.running("analysis", "w2")
    ledger.call("begin_call", **judging.ids(), model="m", cost=0, zone="UTC")
    eraser().erase("me")
    assert not ledger.finish(hearing, "what was said")["written"]
    assert not ledger.call("save_part", **hearing.ids(), data={})["saved"]
    assert not ledger.call("finish", **judging.ids(), result={"row": {"summary": "s"}})["written"]
    assert ledger.call("begin_call", **judging.ids(), model="m", cost=0, zone="UTC") == {"lost": True}
    assert not ledger.end("fail", hearing, error="late")["written"]
    assert ledger.heartbeat(items=[{"id": hearing.id, "attempt": hearing.attempt}])["lost"] == [hearing.id]
    assert not any(eraser().preview().values())


def test_a_recording_that_comes_while_the_others_go(
    ledger: Ledger, eraser: Callable[..., Eraser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.file(DEVICE, path=f"files/{DEVICE}/{DAY}/12-00/audio.wav")
    own = eraser(audio=True)
    real = delete_audio

    def late(*args: Any, **which: Any) -> tuple[int, bool]:
        done = real(*args, **which)
        if done[0] and not (tmp_path / "late").exists():
            (tmp_path / "late").touch()
            put(tmp_path, f"files/{DEVICE}/{DAY}/12-30/audio.wav")
            ledger.file(DEVICE, "2025-07-18T03:30:00Z", path=f"files/{DEVICE}/{DAY}/12-30/audio.wav")
        return done

    monkeypatch.setattr(erasing, "delete_audio", late)
    assert own.erase("me")["erased"]["audio_files"] == 2
    assert not (tmp_path / "files").exists()
    assert not any(eraser().preview().values())


def test_audio_that_another_device_names_too_stays(
    ledger: Ledger, eraser: Callable[..., Eraser], tmp_path: Path
) -> None:
    shared = put(tmp_path, "shared.wav")
    for device in (DEVICE, OTHER):
        ledger.file(device, path="shared.wav")
    eraser(audio=True).erase("me")
    assert shared.exists()
    assert ledger.one("select device_id from audio_files") == OTHER


def test_rows_that_somebody_holds_are_waited_for(
    ledger: Ledger, eraser: Callable[..., Eraser], monkeypatch: pytest.MonkeyPatch
) -> None:
    live(ledger, DEVICE)
    monkeypatch.setattr(erasing, "PATIENCE", 0.0)
    monkeypatch.setattr(erasing, "PAUSE", 0.0)
    with psycopg.connect(ledger.url) as app:
        app.execute("select from audio_files where recorded_at = %s for update", [NOON])
        with pytest.raises(Transient, match="run the same command again"):
            eraser().erase("me")
    receipt = eraser().erase("somebody else")
    assert receipt["erased"]["audio_files"] == 3  # of both runs
    assert not any(eraser().preview().values())
    assert len(ledger.call("erasures", device_sha256=Wanted(DEVICE).sha256)["erasures"]) == 1


def test_a_job_for_this_device_alone_stops(ledger: Ledger, eraser: Callable[..., Eraser]) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "transcription", "title": "T", "source": "transcription", "every": 60}])
    ledger.call("edit_job", job="transcription", filters={"partition": DEVICE})
    eraser().erase("me")
    (job,) = ledger.call("jobs")["jobs"]
    assert (job["enabled"], job["filters"]) == (False, {})


def test_a_name_inside_another_one_is_another_device(ledger: Ledger, eraser: Callable[..., Eraser]) -> None:
    ledger.sql(
        "insert into audit_log (who, what, target)"
        " values ('me', 'x', 'd1'), ('me', 'x', 'd10/a'), ('me', 'x', 'a.d1/b')"
    )
    ledger.file("d10")
    eraser("d1").erase("me")
    targets = [row["target"] for row in ledger.sql("select target from audit_log where what = 'x' order by id")]
    assert targets == ["(erased)", "d10/a", "a.(erased)/b"]
    assert ledger.one("select count(*) from audio_files") == 1


def test_a_device_that_the_dashboard_can_not_name(ledger: Ledger, eraser: Callable[..., Eraser], uuids: None) -> None:
    ledger.file("d1")
    assert eraser("d1").erase("me")["erased"]["audio_files"] == 1


def test_messages_and_results(ledger: Ledger, eraser: Callable[..., Eraser], redis_server: Redis) -> None:
    client = Client.from_url(redis_server.url)
    with Celery(broker=redis_server.url) as app:
        for device in (DEVICE, OTHER):
            app.send_task("tasks.transcription", args=[1, f"{device}/{NOON}"], queue="whisper", argsrepr="(one)")
            client.set(f"celery-task-meta-{device[:3]}", json.dumps({"result": {"key": f"{device}/{NOON}"}}))
    assert eraser().preview() | {"messages": 1, "results": 1} == eraser().preview()
    receipt = eraser().erase("me")
    assert (receipt["erased"]["messages"], receipt["erased"]["results"]) == (1, 1)
    assert client.llen("whisper") == 1
    assert [key.decode() for key in client.scan_iter("celery-task-meta-*")] == ["celery-task-meta-oth"]


def test_every_table_that_names_a_device_is_known(direct_ledger: Ledger) -> None:
    """A new table with rows of devices: give it a line in `private_tables` (or in NOTHING_PRIVATE above)."""
    rows = direct_ledger.sql(
        "select distinct table_name as name from information_schema.columns where table_schema = 'public'"
        " and column_name in ('device_id', 'key', 'ref', 'partition', 'file_path')"
    )
    known = {row["name"] for row in direct_ledger.sql("select name from private_tables")}
    assert {row["name"] for row in rows} - known - NOTHING_PRIVATE == {
        "audio_files", "dashboard", "work_items", "llm_calls",
    }  # fmt: skip


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(settings: Settings, redis_server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings, tmp_path).items():
        monkeypatch.setenv(name, value)

    def execute(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["erase", *arguments])
        return ended.value.code if isinstance(ended.value.code, int) else 0

    return execute


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    assert settings.database.database_url is not None
    return {
        "DATABASE_URL": settings.database.database_url.get_secret_value(),
        "CELERY_BROKER_URL": settings.broker.url.get_secret_value(),
        "AUDIO_FOLDER": str(folder),
        "SUPABASE_URL": "",
    }


def test_the_command(direct_ledger: Ledger, run: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    live(direct_ledger, DEVICE)
    assert run("--device", "nobody") == 1
    assert "Nothing of device nobody is here; is the id right?" in capsys.readouterr().out
    assert run("--device", DEVICE) == 0
    assert "Nothing was erased; --yes does it." in capsys.readouterr().out
    assert direct_ledger.one("select count(*) from audio_files") == 3
    assert run("--device", DEVICE, "--yes", "--receipt", str(tmp_path / "no/such/folder")) == 1
    assert run("--device", DEVICE, "--from", "yesterday") == 1
    assert run("--device", DEVICE, "--from", NEXT, "--to", DAY) == 1
    assert direct_ledger.one("select count(*) from audio_files") == 3
    capsys.readouterr()
    assert run("--device", DEVICE, "--yes", "--who", "Ms. Sato") == 0
    assert "The receipt is toban-erasure-" in capsys.readouterr().out
    (file,) = tmp_path.glob("toban-erasure-*.json")
    receipt = json.loads(file.read_text("utf-8"))
    assert (receipt["asked_by"], receipt["sha256"]) == ("Ms. Sato", seal(receipt))
    assert run("--device", DEVICE, "--yes") == 0
    assert "is left; it was erased at" in capsys.readouterr().out


def test_killed_in_the_middle_it_goes_on(
    direct_ledger: Ledger, run: Callable[..., int], settings: Settings, tmp_path: Path
) -> None:
    ledger = direct_ledger
    live(ledger, DEVICE)
    with psycopg.connect(ledger.url) as app:
        app.execute("select from audio_files where recorded_at = %s for update", [NOON])
        child = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "erase", "--device", DEVICE, "--yes"],
            cwd=tmp_path, env={**os.environ, **environment(settings, tmp_path), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        wait_for(lambda: ledger.one("select count(*) from audio_files") == 1, "the first rows go")
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert list(tmp_path.glob("toban-erasure-*")) == []
    assert run("--device", DEVICE, "--yes") == 0
    (file,) = tmp_path.glob("toban-erasure-*.json")
    assert json.loads(file.read_text("utf-8"))["erased"]["audio_files"] == 3
    ledger.sql("update erasures set ended_at = null, receipt = null")  # killed before the receipt
    file.unlink()
    assert run("--device", DEVICE, "--yes") == 0
    (file,) = tmp_path.glob("toban-erasure-*.json")
    assert json.loads(file.read_text("utf-8"))["erased"]["audio_files"] == 3
