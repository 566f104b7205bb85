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

    def made(*, folder: bool = True, **kept: object) -> Services:
        values: dict[str, dict[str, Any]] = {
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


def test_the_dry_run_names_every_kind(direct_ledger: Ledger, services: Callable[..., Services]) -> None:
    every = dict.fromkeys(
        (
            "audio_days",
            "segments_days",
            "transcripts_days",
            "prompts_days",
            "results_days",
            "parts_days",
            "errors_days",
        ),
        1,
    )
    own = services(**every)
    assert set(preview(own.database, own.settings)) - {"prompted_blocks"} == KINDS.keys()
    settings = {variable(group, field) for group in GROUPS.values() for field in group.model_fields}
    assert {setting for _, setting in KINDS.values()} <= settings


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
