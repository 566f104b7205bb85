"""Transcripts of recordings that share a time block."""

from functools import partial

import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, at_once


def test_two_recordings_of_one_block_in_time_order(ledger: Ledger) -> None:
    """Finished at once, many times: neither text may be lost."""
    for day in range(12):
        device = f"d{day}"
        ledger.file(device, "2025-07-18T03:00:00Z")
        ledger.file(device, "2025-07-18T03:15:00Z")
        ledger.heartbeat(slots=2)
        first, second = [ledger.start(item) for item in ledger.claim(2)]
        at_once(partial(ledger.finish, second, "夕方のことば"), partial(ledger.finish, first, "朝のことば"))
        text = ledger.one("select transcription from vibe_whisper where device_id = %s", device)
        assert text == "朝のことば\n夕方のことば"
    assert ledger.one("select count(*) from vibe_whisper") == 12


def test_a_new_transcript_replaces_the_old_one(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.finish(ledger.running(), "old")
    ledger.set_status("pending", key)
    ledger.finish(ledger.running(), "new")
    assert ledger.one("select transcription from vibe_whisper") == "new"
    assert ledger.one("select count(*) from transcripts") == 1


def test_silence_leaves_no_empty_line(ledger: Ledger) -> None:
    ledger.file(at="2025-07-18T03:00:00Z")
    ledger.file(at="2025-07-18T03:15:00Z")
    ledger.finish(ledger.running(), "")
    assert ledger.one("select transcription from vibe_whisper") == ""
    ledger.finish(ledger.running(), "words")
    assert ledger.one("select transcription from vibe_whisper") == "words"


def test_a_result_that_cannot_be_stored_changes_nothing(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    with pytest.raises(Permanent, match="violates check constraint"):
        ledger.finish(run, block="25-99")
    assert ledger.state(key) == "processing"
    assert ledger.status_of(key) == "pending"
    assert ledger.finish(run)["written"]
