"""A recording's row is deleted: so are its words, and what was made of them."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.ledger import NOON, Attempt, Ledger

QUARTER_PAST = "2025-07-18T03:15:00Z"
ZONE = "Asia/Tokyo"


def hear(ledger: Ledger, text: str, at: str = NOON, device: str = "d1", block: str = "12-00") -> None:
    ledger.file(device, at)
    ledger.finish(ledger.running(), text, block)


def texts(ledger: Ledger) -> list[str]:
    return [row["transcription"] for row in ledger.sql("select transcription from vibe_whisper order by 1")]


def left(ledger: Ledger, table: str) -> int:
    return int(ledger.one(f"select count(*) from {table}"))


def write_prompts(ledger: Ledger) -> int:
    blocks = ledger.call("unprompted_blocks", zone=ZONE, limit=10)["blocks"]
    told = [{**block, "prompt": f"Of: {block['transcription']}"} for block in blocks]
    return int(ledger.call("write_prompts", blocks=told)["written"])


def test_its_words_go_and_the_block_keeps_the_others(ledger: Ledger) -> None:
    hear(ledger, "朝のことば")
    hear(ledger, "夕方のことば", QUARTER_PAST)
    assert texts(ledger) == ["朝のことば\n夕方のことば"]
    ledger.sql("delete from audio_files where recorded_at = %s", NOON)
    assert texts(ledger) == ["夕方のことば"]
    assert [row["text"] for row in ledger.sql("select text from transcripts")] == ["夕方のことば"]
    ledger.sql("delete from audio_files")
    assert texts(ledger) == []
    assert left(ledger, "transcripts") == 0


def test_a_public_key_deletes_under_row_level_security(direct_ledger: Ledger) -> None:
    hear(direct_ledger, "words")
    with (
        direct_ledger.altered(
            "create policy own on audio_files for all to anon using (true)", "drop policy own on audio_files"
        ),
        psycopg.connect(direct_ledger.url) as app,
    ):
        app.execute("set role anon")
        app.execute("delete from audio_files")
    assert (texts(direct_ledger), left(direct_ledger, "transcripts")) == ([], 0)


def test_parts_of_a_running_recording_go_and_its_worker_writes_nothing(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.call("save_part", **run.ids(), data={"text": "half of it"})
    ledger.sql("delete from audio_files")
    assert left(ledger, "saved_parts") == 0
    assert not ledger.call("save_part", **run.ids(), data={"text": "more"})["saved"]
    assert not ledger.finish(run)["written"]
    assert ledger.state(key) == "skipped"
    assert (texts(ledger), left(ledger, "transcripts"), left(ledger, "saved_parts")) == ([], 0, 0)


def test_its_worker_writes_nothing_although_the_item_was_not_closed(ledger: Ledger) -> None:
    """Somebody held the item, so the trigger gave up."""
    ledger.file()
    run = ledger.running()
    with psycopg.connect(ledger.url) as other:
        other.execute("select from work_items for update")
        ledger.sql("delete from audio_files")
    ledger.finish(run)
    assert (texts(ledger), left(ledger, "transcripts")) == ([], 0)


def test_the_prompt_and_the_verdict_go_and_the_rest_is_asked_about_anew(ledger: Ledger) -> None:
    hear(ledger, "secret")
    hear(ledger, "harmless", QUARTER_PAST)
    assert write_prompts(ledger) == 1
    run = ledger.running("analysis", slots=2)
    ledger.call("finish", **run.ids(), result={"row": {"summary": "it is secret", "vibe_score": 5.0,
                                                       "analysis_result": {"summary": "it is secret"}}})  # fmt: skip
    ledger.sql("delete from audio_files where recorded_at = %s", NOON)
    (row,) = ledger.sql("select prompt, summary, vibe_score, analysis_result, status from dashboard")
    assert row == {"prompt": None, "summary": None, "vibe_score": None, "analysis_result": None, "status": "pending"}
    assert ledger.claim(1, "analysis") == []
    assert write_prompts(ledger) == 1
    assert ledger.one("select prompt from dashboard") == "Of: harmless"


def test_a_prompt_that_the_app_wrote_is_the_apps(ledger: Ledger) -> None:
    hear(ledger, "words")
    ledger.block()
    ledger.sql("delete from audio_files")
    assert ledger.one("select prompt from dashboard") == "How was it?"


def test_a_device_that_the_dashboard_can_not_name(ledger: Ledger, uuids: None) -> None:
    hear(ledger, "words")
    assert write_prompts(ledger) == 0
    ledger.sql("delete from audio_files")
    assert (texts(ledger), left(ledger, "prompted_blocks")) == ([], 0)


def test_words_that_the_planner_has_read_before_are_not_written(ledger: Ledger) -> None:
    hear(ledger, "secret")
    hear(ledger, "harmless", QUARTER_PAST)
    (block,) = ledger.call("unprompted_blocks", zone=ZONE, limit=10)["blocks"]
    ledger.sql("delete from audio_files where recorded_at = %s", NOON)
    assert ledger.call("write_prompts", blocks=[{**block, "prompt": "Of: secret"}])["written"] == 0
    ledger.sql("delete from audio_files")
    assert ledger.call("write_prompts", blocks=[{**block, "prompt": "Of: secret"}])["written"] == 0
    assert left(ledger, "dashboard") == 0


def test_the_text_of_an_old_program_goes_too(ledger: Ledger) -> None:
    """It left no transcript of its own: the path says which block it is."""
    for device in ("d1", "d2"):
        ledger.file(device, status="completed", path=f"files/{device}/2025-07-18/12-00/audio.wav")
        ledger.sql("insert into vibe_whisper values (%s, '2025-07-18', '12-00', %s)", device, device)
    ledger.file("d3", status="completed", path="files/d3/2025-02-31/12-00/audio.wav")
    ledger.sql("delete from audio_files where device_id <> 'd2'")
    assert texts(ledger) == ["d2"]
    assert left(ledger, "forgotten_recordings") == 0


@pytest.mark.parametrize("held", ["select from vibe_whisper for update", "select from dashboard for update"])
def test_what_somebody_holds_is_forgotten_later(ledger: Ledger, held: str) -> None:
    hear(ledger, "words")
    write_prompts(ledger)
    with psycopg.connect(ledger.url) as other:
        other.execute(held)
        ledger.sql("delete from audio_files")
        assert left(ledger, "audio_files") == 0
    assert ledger.call("forget_recordings") == {"forgotten": 1, "more": False}
    assert (texts(ledger), left(ledger, "transcripts"), ledger.one("select prompt from dashboard")) == ([], 0, None)
    assert ledger.call("forget_recordings") == {"forgotten": 0, "more": False}


def test_a_row_that_is_there_again_keeps_its_words(direct_ledger: Ledger) -> None:
    hear(direct_ledger, "words")
    direct_ledger.sql("insert into forgotten_recordings values ('d1', %s)", NOON)
    direct_ledger.call("forget_recordings")
    assert texts(direct_ledger) == ["words"]


def test_a_deletion_does_not_deadlock_with_a_finish_of_the_same_block(direct_ledger: Ledger) -> None:
    """The app deletes one recording of a block, then another one whose worker wants to write into that block."""
    ledger = direct_ledger
    hear(ledger, "first")
    ledger.file(at=QUARTER_PAST)
    run: Attempt = ledger.running()
    with psycopg.connect(ledger.url) as app, psycopg.connect(ledger.url, autocommit=True) as worker:
        app.execute("delete from audio_files where recorded_at = %s", [NOON])
        result = {"date": "2025-07-18", "time_block": "12-00", "text": "second", "segments": [],
                  "duration_seconds": 1.0, "model": "tiny", "engine": "test"}  # fmt: skip
        with pytest.raises(psycopg.errors.LockNotAvailable):  # which the program repeats
            worker.execute("select toban_finish(%s)", [Jsonb({**run.ids(), "result": result})])
        app.execute("delete from audio_files where recorded_at = %s", [QUARTER_PAST])
    assert texts(ledger) == []
    assert not ledger.finish(run)["written"]


def test_many_rows_at_once(direct_ledger: Ledger) -> None:
    """Two recordings in each block; a thousand blocks lose one, a thousand both."""
    ledger = direct_ledger
    ledger.sql(
        "insert into transcripts (device_id, recorded_at, date, time_block, text, duration_seconds, model, engine)"
        " select d, t, t::date, to_char(t, 'HH24') || '-00', to_char(t, 'MI'), 1, 'm', 'e'"
        " from unnest(array['a', 'b']) d,"
        " generate_series('2025-07-01Z'::timestamptz, '2025-07-01Z'::timestamptz + interval '999 hours', '1 hour') h,"
        " unnest(array[h, h + interval '15 min']) t"
    )
    ledger.sql(
        "insert into audio_files select device_id, recorded_at, 'a', 'completed' from transcripts;"
        " insert into vibe_whisper select distinct device_id, date, time_block, e'00\\n15' from transcripts"
    )
    ledger.sql("delete from audio_files where device_id = 'a' or extract(minute from recorded_at) = 0")
    assert left(ledger, "forgotten_recordings") == 0
    assert left(ledger, "transcripts") == 1000
    assert texts(ledger) == ["15"] * 1000
