"""What the pages of devices, days and recordings show; the search for what was said."""

from typing import Any

import pytest

from app.errors import Permanent
from tests.support.ledger import NOON, QUEUE, Ledger

ZONE = "Asia/Tokyo"
DAY = "2025-07-18"


@pytest.fixture(autouse=True)
def _nothing_left(clean_url: str, ledger: Ledger) -> None:
    ledger.sql("truncate queue_holds, llm_calls, llm_days, dashboard")


def hear(ledger: Ledger, text: str, device: str = "d1", at: str = NOON, block: str = "12-00") -> str:
    """A recording and its transcript."""
    key = ledger.file(device, at)
    ledger.heartbeat()
    (claimed,) = ledger.claim(1)
    ledger.finish(ledger.start(claimed), text, block)
    return key


def day(ledger: Ledger, device: str = "d1", date: str = DAY) -> dict[str, Any]:
    return dict(ledger.call("page_day", device=device, date=date, zone=ZONE))


def found(ledger: Ledger, *words: str, **params: object) -> list[str]:
    return [hit["device_id"] for hit in ledger.call("page_search", words=words, **params)["found"]]


def analyse(ledger: Ledger, score: float, cost: float) -> None:
    """The block's verdict, with a call that cost something."""
    ledger.sql("insert into dashboard (device_id, date, time_block, prompt) values ('d1', '2025-07-18', '12-00', 'p')")
    ledger.heartbeat("g1", queues=["gpt"])
    (claimed,) = ledger.claim(1, "analysis", queue="gpt")
    run = ledger.start(claimed, "g1")
    call = ledger.call("begin_call", **run.ids(), model="gpt-4o-mini", cost=cost, zone=ZONE)["call"]
    row = {"vibe_score": score, "summary": "静かな昼", "behavior": "食事"}
    ended = {"call": call, "outcome": "ok", "cost": cost, "completion_tokens": 7}
    ledger.call("finish", **run.ids(), result={"row": row, "call": ended})


def test_a_day_has_its_recordings_words_scores_and_cost(ledger: Ledger) -> None:
    hear(ledger, "おはよう")
    ledger.file("d1", "2025-07-17T15:00:00Z")  # midnight in Tokyo
    ledger.file("d1", "2025-07-18T15:00:00Z")  # the next day's
    ledger.file("d1", "2025-07-10T03:00:00Z")
    ledger.file("d2")
    analyse(ledger, -30, 0.002)
    page = day(ledger)
    first, second = page["recordings"]
    assert first["item"]["state"] == "pending"
    assert not first["heard"]
    assert second["item"]["state"] == "completed"
    assert (second["heard"], second["text"], second["status"]) == (True, None, "completed")
    assert page["words"] == {"12-00": "おはよう"}
    (analysis,) = page["analyses"]
    assert (analysis["time_block"], analysis["vibe_score"], analysis["summary"]) == ("12-00", -30, "静かな昼")
    assert page["cost"] == 0.002
    assert (page["before"], page["after"]) == ("2025-07-10", "2025-07-19")


def test_a_day_of_nobody_is_empty(ledger: Ledger) -> None:
    page = day(ledger, "nobody's")
    assert (page["recordings"], page["analyses"], page["words"], page["cost"]) == ([], [], {}, 0)
    assert (page["before"], page["after"]) == (None, None)


def test_a_table_whose_devices_are_uuids(ledger: Ledger) -> None:
    device = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
    with ledger.altered(
        "alter table audio_files alter device_id type uuid using device_id::uuid",
        "truncate audio_files; alter table audio_files alter device_id type text",
    ):
        ledger.file(device)
        assert len(day(ledger, device)["recordings"]) == 1
        assert day(ledger, "d1")["recordings"] == []
        assert [one["device_id"] for one in ledger.call("page_devices", zone=ZONE)["devices"]] == [device]
        assert ledger.call("page_recording", device=device, at=NOON, zone=ZONE)["time_block"] == "12-00"


def test_a_recording_with_its_words_attempts_and_calls(ledger: Ledger) -> None:
    hear(ledger, "おはよう")
    analyse(ledger, 40, 0.5)
    page = ledger.call("page_recording", device="d1", at=NOON, zone=ZONE)
    assert (page["recording"]["text"], page["date"], page["time_block"]) == ("おはよう", DAY, "12-00")
    assert [attempt["outcome"] for attempt in page["attempts"]] == ["completed"]
    assert [attempt["outcome"] for attempt in page["analysis_attempts"]] == ["completed"]
    assert page["analysis"]["vibe_score"] == 40
    assert (page["calls"]["cost"], page["calls"]["count"]) == (0.5, 1)
    assert page["calls"]["list"][0]["model"] == "gpt-4o-mini"
    with pytest.raises(Permanent, match="there is no recording of d9"):
        ledger.call("page_recording", device="d9", at=NOON, zone=ZONE)


def test_devices_with_their_days_and_troubles(ledger: Ledger) -> None:
    ledger.file("d1", "2025-07-17T15:00:00Z")
    ledger.end("fail", ledger.running())
    ledger.file("d1", "2025-07-19T03:00:00Z")
    ledger.file("d2", "2025-07-20T03:00:00Z")
    assert ledger.call("page_devices", zone=ZONE) == {
        "more": False,
        "devices": [
            {"device_id": "d2", "first": "2025-07-20", "last": "2025-07-20", "waiting": 1, "failed": 0},
            {"device_id": "d1", "first": "2025-07-18", "last": "2025-07-19", "waiting": 1, "failed": 1},
        ],
    }
    assert ledger.call("page_devices", zone=ZONE, limit=1)["more"]


def test_words_are_found_in_any_language(ledger: Ledger) -> None:
    hear(ledger, "今日は雨が降っています。散歩は明日にしましょう。", "ja")
    hear(ledger, "It rains. Let us go for a Walk tomorrow, at 10.", "en")
    assert found(ledger, "散歩") == ["ja"]
    assert found(ledger, "雨") == ["ja"]
    assert found(ledger, "散歩", "雨が") == ["ja"]
    assert found(ledger, "散歩", "雪") == []
    assert found(ledger, "散明") == []
    assert found(ledger, "walk") == ["en"]
    assert found(ledger, "go for a wal") == ["en"]
    assert found(ledger, "１０") == ["en"]
    assert found(ledger, "walk", device="ja") == []
    assert ledger.call("page_search", words=["100%"])["found"] == []
    (hit,) = ledger.call("page_search", words=["散歩"])["found"]
    assert (hit["date"], hit["time_block"], hit["at"]) == (DAY, "12-00", 13)
    assert "散歩" in hit["text"]


def test_the_latest_is_found_first_and_no_more_than_asked_for(ledger: Ledger) -> None:
    for minute in range(4):
        hear(ledger, "同じ言葉", f"d{minute}", f"2025-07-18T03:0{minute}:00Z")
    assert found(ledger, "言葉", limit=2) == ["d3", "d2"]
    assert ledger.call("page_search", words=["言葉"], limit=2)["more"]
    assert not ledger.call("page_search", words=["言葉"], limit=4)["more"]


def test_a_search_for_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="no word to search for"):
        ledger.call("page_search", words=[" "])


def test_what_is_searched_is_found_by_an_index(direct_ledger: Ledger) -> None:
    with direct_ledger.altered("set enable_seqscan = off", "reset enable_seqscan"):
        plan = direct_ledger.sql(
            "explain select from transcripts t where public.toban_grams(t.text) @> public.toban_grams('雨が')"
        )
    assert any("transcripts_grams_idx" in row["QUERY PLAN"] for row in plan)


def test_queues_are_named_by_the_caller(ledger: Ledger) -> None:
    ledger.heartbeat(slots=3)
    work = ledger.call("page_work", queues={"transcription": QUEUE})
    slots = {source["source"]: source["slots"] for source in work["sources"]}
    assert (slots["analysis"], slots["transcription"]) == (0, 3)
