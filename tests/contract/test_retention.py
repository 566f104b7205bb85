"""How long each kind is kept: nothing without a setting, and never what waits or runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.errors import Permanent
from app.retention import KINDS, preview, retain
from app.services import Services, build_services
from app.settings import GROUPS, Settings, variable
from tests.support.ledger import NOON, Ledger

OLD = {"items_days": 999, "runs_days": 999}


def hear(ledger: Ledger, at: str = NOON, device: str = "d1", path: str = "audio.wav", day: str = "2025-07-18") -> None:
    ledger.file(device, at, path=path)
    run = ledger.running()
    result = {"date": day, "time_block": "12-00", "text": "words", "segments": [{"text": "words"}],
              "duration_seconds": 1.0, "model": "m", "engine": "e"}  # fmt: skip
    ledger.call("finish", **run.ids(), result=result)


def judge(ledger: Ledger, block: str = "12-00", date: str = "2025-07-18") -> None:
    ledger.block(block=block, date=date)
    run = ledger.running("analysis", slots=9)
    ledger.call("finish", **run.ids(), result={"row": {"summary": "s"}})


def left(ledger: Ledger) -> dict[str, int]:
    return {
        name: int(ledger.one(f"select count(*) from {what}"))
        for name, what in {
            "segments": "transcripts where segments <> '[]'", "transcripts": "transcripts", "texts": "vibe_whisper",
            "prompts": "dashboard where prompt is not null", "results": "dashboard",
        }.items()
    }  # fmt: skip


def rows_of(ledger: Ledger) -> dict[str, int]:
    """How many rows each table of a kind has."""
    tables = ledger.sql("select distinct replace(tab, 'public.', '') as name from toban_kinds()")
    names = [*(row["name"] for row in tables), "audio_files"]
    return {name: ledger.app.execute(f"select count(*) as n from {name}".encode()).fetchall()[0]["n"] for name in names}


def test_nothing_goes_without_a_setting(ledger: Ledger) -> None:
    hear(ledger)
    judge(ledger)
    before = left(ledger)
    assert ledger.call("retention", **OLD) == {"items": 0, "runs": 0, "workers": 0, "more": False}
    assert left(ledger) == before


@pytest.mark.parametrize(
    ("setting", "gone"),
    [
        ("segments", {"segments"}),
        ("transcripts", {"segments", "transcripts", "texts"}),
        ("prompts", {"prompts"}),
        ("results", {"prompts", "results"}),
    ],
)
def test_each_kind_by_itself_and_only_what_is_old(ledger: Ledger, setting: str, gone: set[str]) -> None:
    today = str(ledger.one("select (now() at time zone 'Asia/Tokyo')::date"))
    hear(ledger)
    hear(ledger, ledger.one("select to_json(now()) #>> '{}'"), day=today)
    judge(ledger)
    judge(ledger, date=today)
    found = ledger.call("retention", **OLD, **{f"{setting}_days": 30}, zone="Asia/Tokyo", dry=True)
    assert left(ledger) == dict.fromkeys(left(ledger), 2)
    done = ledger.call("retention", **OLD, **{f"{setting}_days": 30}, zone="Asia/Tokyo")
    assert left(ledger) == {name: 1 if name in gone else 2 for name in left(ledger)}
    assert {name: n for name, n in found.items() if n} == {name: n for name, n in done.items() if n and name != "more"}


def test_what_waits_or_runs_stays(ledger: Ledger) -> None:
    hear(ledger)
    judge(ledger)
    ledger.set_status("pending")
    ledger.sql("update dashboard set status = 'pending'")
    before = left(ledger)
    everything = dict.fromkeys(("segments_days", "transcripts_days", "prompts_days", "results_days"), 1)
    ledger.call("retention", **OLD, **{**everything, "segments_days": None})
    assert left(ledger) == before
    ledger.running()
    ledger.running("analysis")
    ledger.call("retention", **OLD, **{**everything, "segments_days": None})
    assert left(ledger) == before


def test_batches_end(ledger: Ledger) -> None:
    for minute in range(3):
        hear(ledger, f"2025-07-18T03:0{minute}:00Z")
    answers = [ledger.call("retention", **OLD, transcripts_days=1, limit=2) for _ in range(2)]
    assert [(answer["transcripts"], answer["more"]) for answer in answers] == [(2, True), (1, False)]


def test_errors_and_parts(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    for kind in ("fail", "skip"):
        run = ledger.running()
        ledger.call("save_part", **run.ids(), data={"text": "words"})
        ledger.end(kind, run, error="why", **({"traceback": "Traceback"} if kind == "fail" else {}))
    ledger.sql("update work_items set finished_at = now() - interval '9 days'")
    ledger.sql("update work_attempts set ended_at = now() - interval '9 days'")
    ledger.sql("update saved_parts set saved_at = now() - interval '9 days'")
    done = ledger.call("retention", **OLD, errors_days=5, parts_days=5)
    assert (done["errors"], done["attempt_errors"], done["parts"]) == (2, 2, 1)
    rows = ledger.sql("select state, last_error, last_traceback from work_items order by state")
    assert [tuple(row.values()) for row in rows] == [("failed", "why", None), ("skipped", None, None)]


# --- audio -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def services(clean_url: str, tmp_path: Path) -> Any:
    own: list[Services] = []

    def made(*, folder: bool = True, groups: dict[str, dict[str, Any]] | None = None, **kept: object) -> Services:
        values: dict[str, dict[str, Any]] = {
            **(groups or {}),
            "database": {"database_url": clean_url},
            "audio": {"audio_folder": str(tmp_path)} if folder else {},
            "retention": kept,
        }
        own.append(build_services(Settings(**{n: g(_env_file=None, **values.get(n, {})) for n, g in GROUPS.items()})))
        return own[-1]

    yield made
    for one in own:
        one.close()


def put(folder: Path, path: str) -> Path:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"RIFF")
    return folder / path


def test_only_audio_of_old_completed_recordings_goes(
    direct_ledger: Ledger, services: Callable[..., Services], tmp_path: Path
) -> None:
    ledger = direct_ledger
    old = put(tmp_path, "files/d1/2025-07-18/12-00/audio.wav")
    failed, young, shared = (put(tmp_path, name) for name in ("failed.wav", "young.wav", "shared.wav"))
    hear(ledger, path="files/d1/2025-07-18/12-00/audio.wav")
    hear(ledger, ledger.one("select to_json(now()) #>> '{}'"), path="young.wav")
    hear(ledger, "2025-07-18T04:00:00Z", path="shared.wav")
    ledger.file("d1", "2025-07-18T05:00:00Z", path="failed.wav")
    ledger.end("fail", ledger.running())
    ledger.file("d2", "2025-07-18T05:00:00Z", path="shared.wav")  # waits, and needs it
    assert retain(services())["audio"] == 0
    own = services(audio_days=30)
    assert preview(own.database, own.settings)["audio"] == 1
    assert retain(own)["audio"] == 1
    assert retain(own)["audio"] == 0
    assert [path.exists() for path in (old, failed, young, shared)] == [False, True, True, True]
    assert not (tmp_path / "files").exists()
    assert ledger.one("select count(*) from audio_files where transcriptions_status = 'completed'") == 3

    # Uploaded and heard once more, it is old once more.
    put(tmp_path, "files/d1/2025-07-18/12-00/audio.wav")
    ledger.call("reprocess", source="transcription", keys=[f"d1/{NOON}"])
    ledger.end("skip", ledger.running(), kind="nothing_there")  # as the worker does where there is none
    assert retain(own)["audio"] == 0
    ledger.call("reprocess", source="transcription", keys=[f"d1/{NOON}"])
    ledger.finish(ledger.running())
    assert retain(own)["audio"] == 1


def test_without_the_recordings_everything_else_is_done(
    direct_ledger: Ledger, services: Callable[..., Services]
) -> None:
    hear(direct_ledger)
    with pytest.raises(Permanent, match="no source of recordings is set"):
        retain(services(folder=False, audio_days=1, transcripts_days=1))
    assert left(direct_ledger)["transcripts"] == 0


# Of everything that a test can't bring about by working, one row of so long ago.
OF_OLD = """
insert into jobs (job, title, every) values ('j', 'J', '1 day') on conflict do nothing;
insert into runs (job, slot, state, started_at, lease_until, worker, filters)
  values ('j', now() - '{age}'::interval, 'success', now() - '{age}'::interval, now(), 'w', '{{}}');
insert into workers (id, node, queues, slots, expires_at)
  values ('w of {age}', 'n', '{{q}}', 1, now() - '{age}'::interval);
insert into prompted_blocks values ('d1', (now() - '{age}'::interval)::date, '12-00');
insert into shadow_rows (source, key, at, status, row, theirs)
  values ('transcription', 'd1/{age}', now() - '{age}'::interval, 'completed', '{{}}', '{{}}'),
         ('analysis', 'd1/{age}', now() - '{age}'::interval, 'completed', '{{}}', '{{}}');
insert into job_watch (job_key, last_finished_at, log_tail)
  values ('outside of {age}', now() - '{age}'::interval, 'words');
insert into incidents (fingerprint, kind, title, opened_at, last_at, recovered_at, settle, log_tail)
  values ('f', 'job', 't', now() - '99 days'::interval, now(), now() - '{age}'::interval, '1 min', 'words');
insert into alerts (kind, created_at, sent_at, incident_id)
  values ('test', now() - '{age}'::interval, now(), null),
         ('opened', now() - '{age}'::interval, now(), currval(pg_get_serial_sequence('incidents', 'id')));
insert into job_reports (job_key, status, reported_at) values ('outside', 'success', now() - '{age}'::interval);
insert into audit_log (who, what, at) values ('aya', 'pause', now() - '{age}'::interval);
insert into batch_requests (source, partition, day, priority, owner, total, completed, created_at)
  values ('transcription', 'd1', '2025-07-18', 5, 'o', 1, 0, now() - '{age}'::interval);
insert into analysis_requests values ('o', 'key of {age}', 'f', 'k', now() - '{age}'::interval);
insert into llm_calls (item_id, source, key, attempt, model, outcome, day, sent_at)
  values (9999, 'analysis', 'k', 1, 'm', 'ok', '2025-07-18', now() - '{age}'::interval),
         (9999, 'analysis', 'k', 2, 'm', 'sent', '2025-07-18', now() - '{age}'::interval);
"""


def test_the_dry_run_tells_of_every_kind_what_then_goes(
    direct_ledger: Ledger, services: Callable[..., Services], tmp_path: Path
) -> None:
    ledger = direct_ledger
    today = str(ledger.one("select (now() at time zone 'Asia/Tokyo')::date"))
    for at, day in ((NOON, "2025-07-18"), (ledger.one("select to_json(now()) #>> '{}'"), today)):
        hear(ledger, at, path=f"{day}.wav", day=day)
        put(tmp_path, f"{day}.wav")
        judge(ledger, date=day)
        ledger.file("d2", at)
        run = ledger.running()
        ledger.call("save_part", **run.ids(), data={"text": "words"})
        ledger.end("fail", run, error="why", traceback="Traceback")
    ledger.sql("""
        update work_items set finished_at = now() - interval '9 days' where key like '%%2025-07-18%%';
        update work_attempts a set ended_at = w.finished_at from work_items w where w.id = a.item_id;
        update saved_parts p set saved_at = w.finished_at from work_items w where w.id = p.item_id
    """)
    for age in ("9 days", "1 hour"):
        ledger.app.execute(OF_OLD.format(age=age).encode())
    own = services(
        groups={
            "ledger": dict.fromkeys(("keep_items_days", "keep_runs_days", "keep_batches_days", "keep_calls_days"), 5),
            "monitor": dict.fromkeys(("keep_incidents_days", "keep_audit_days"), 5),
        },
        **dict.fromkeys(GROUPS["retention"].model_fields, 5),
    )
    before = rows_of(ledger)
    found = preview(own.database, own.settings)
    assert rows_of(ledger) == before
    assert {kind for kind, count in found.items() if count} == KINDS.keys()
    assert retain(own) == found
    assert not any(preview(own.database, own.settings).values())
    # What is young is still there: half of each table.
    assert left(ledger) == dict.fromkeys(left(ledger), 1)
    after = rows_of(ledger)
    kept_whole = {"audio_files", "work_attempts", "job_watch", "jobs"}
    assert {table for table in before if not after[table]} == set()
    assert {table for table in before if after[table] == before[table]} <= kept_whole


def test_every_kind_has_a_setting_that_there_is() -> None:
    settings = {variable(group, field) for group in GROUPS.values() for field in group.model_fields}
    assert {setting for _, setting in KINDS.values() if setting} <= settings


def test_the_command(
    direct_ledger: Ledger, clean_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hear(direct_ledger)
    for name, value in {"DATABASE_URL": clean_url, "SUPABASE_URL": "", "RETENTION_TRANSCRIPTS_DAYS": "30"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["retention", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    shown = [line.split() for line in run("--dry-run").splitlines()]
    assert ["transcripts", "30", "days", "1", "RETENTION_TRANSCRIPTS_DAYS"] in shown
    assert ["audio", "ever", "RETENTION_AUDIO_DAYS"] in shown
    assert left(direct_ledger)["transcripts"] == 1
    assert run().startswith("Forgotten: 1 texts, 1 transcripts")
    assert run() == "Nothing is old enough.\n"
