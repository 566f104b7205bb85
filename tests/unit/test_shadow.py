"""What TOBAN_SHADOW may say, and how much two results agree."""

import pytest

from app.compare import Compared, error_rate, transcripts, verdicts
from app.errors import NothingThere
from app.settings import Ledger, SettingsError
from app.shadow import named, shadow_of
from app.sources import Result, Source
from app.work import Work
from tests.support.ledger import Row


@pytest.mark.parametrize(
    ("written", "sources"),
    [
        ("", []),
        ("0", []),
        ("1", ["analysis", "transcription"]),
        (" Transcription , analysis,", ["transcription", "analysis"]),
    ],
)
def test_what_the_setting_names(written: str, sources: list[str]) -> None:
    found = named(Ledger(shadow=written))
    assert [name for name in found if name in {"analysis", "transcription"}] == sources
    assert "shadow_transcription" not in found


@pytest.mark.parametrize("written", ["transcripton", "1,analysis", "shadow_analysis", "2"])
def test_a_name_that_is_none_is_refused_with_those_that_are(written: str) -> None:
    with pytest.raises(SettingsError, match=r"E060.* TOBAN_SHADOW: names no source: (.|\n)*analysis.*transcription"):
        named(Ledger(shadow=written))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("Hello, world. It is FIVE o'clock", "hello world it is five o clock", 0),
        ("one two three four", "one two four", 0.25),
        ("one two", "one two three four five six", 2),  # more wrong words than there were
        ("今日は、いい天気です。", "今日はいい天気でした", 2 / 9),  # counted by characters
        ("今日は いい天気", "今日はいい天気", 0),
        ("ﾃｽﾄ Ａ", "テスト A", 0),  # width does not count
        ("", "...", 0),
        ("words", "", 1),
        ("", "words", 1),
    ],
)
def test_error_rates(reference: str, hypothesis: str, rate: float) -> None:
    assert error_rate(reference, hypothesis) == pytest.approx(rate)


def heard(text: str) -> Row:
    return {"text": text, "model": "tiny", "engine": "faster-whisper", "segments": []}


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict", "difference"),
    [
        (" the very same ", "the very same", "identical", 0),
        ("the very same", "The very same.", "near", 0),
        (" ".join("abcdefghij"), " ".join("abcdefghix"), "near", 0.1),
        ("one two three", "one two four", "different", 1 / 3),
        (None, "words", "unmatched", None),
        ("", "", "identical", 0),
    ],
)
def test_transcripts(theirs: str | None, ours: str, verdict: str, difference: float | None) -> None:
    compared = transcripts({"text": theirs}, heard(ours))
    assert compared.verdict == verdict
    assert compared.difference == pytest.approx(difference, abs=1e-4)
    assert compared.ours == {"text": ours, "model": "tiny", "engine": "faster-whisper"}


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict", "difference"),
    [(-30, -30.0, "identical", 0), (-30, -40, "near", 10), (5, -6, "different", 11), (None, 5, "unmatched", None)],
)
def test_verdicts(theirs: float | None, ours: float, verdict: str, difference: float | None) -> None:
    row = {"vibe_score": ours, "summary": "s", "behavior": "b", "analysis_result": {}, "processed_at": "now"}
    compared = verdicts({"vibe_score": theirs, "summary": "t"}, {"row": row})
    assert (compared.verdict, compared.difference) == (verdict, difference)
    assert "processed_at" not in compared.ours


def test_what_has_effects_of_its_own_has_no_shadow() -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        shadow_of(Source("call", "calls", "Calls", run=lambda _: {}))


def test_an_error_of_the_source_is_the_comparisons() -> None:
    from datetime import timedelta
    from typing import Any, cast

    from app.ledger import Attempt

    def run(work: Work) -> Result:
        assert work.row == {"file_path": "a.wav"}
        raise NothingThere("it is gone")

    twin = shadow_of(Source("toy", "q", "Toy", run=run, compare=lambda *_: Compared("near", {})))
    kept = {"row": {"file_path": "a.wav"}, "theirs": {"text": "x"}}
    known: Any = dict.fromkeys(Attempt.__dataclass_fields__) | {"row": kept, "key": "toy/1"}
    with pytest.raises(NothingThere):
        twin.run(Work(cast("Any", None), Attempt(**known), timedelta(1)))
