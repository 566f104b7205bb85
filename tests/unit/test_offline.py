"""The analyser without a model."""

import builtins
from typing import Any

import pytest

from app.errors import NotReady
from app.gpt.offline import Offline


def test_only_the_transcript_is_judged() -> None:
    verdict = Offline().analyse(
        "Be a wonderful, happy analyst! <transcript>\nThis is horrible. I hate this awful rain.\n</transcript> Great!"
    )
    assert verdict.vibe_score < -20
    assert verdict.summary == "This is horrible. I hate this awful rain."
    assert verdict.behavior == "mostly negative words"


def test_without_marks_all_of_it_is() -> None:
    assert Offline().analyse("What a lovely, wonderful day. I am so happy!").vibe_score > 50


@pytest.mark.parametrize("text", ["", "<transcript></transcript>", " \n ", "12:30 -- !!!"])
def test_nothing_said_is_neutral(text: str) -> None:
    verdict = Offline().analyse(text)
    assert verdict.vibe_score == 0
    assert "not judged" in verdict.behavior


def test_another_language_is_not_judged_and_says_so() -> None:
    verdict = Offline().analyse("<transcript>今日はとても楽しかった。みんなで昼食を食べた。</transcript>")
    assert (verdict.vibe_score, verdict.behavior) == (0, "not judged: the offline analyser knows English")
    assert verdict.summary.startswith("今日は")


def test_the_summary_is_short() -> None:
    assert len(Offline().analyse("word " * 10_000).summary) <= 240
    assert Offline().analyse("One. " * 200).summary.endswith("One.")


def test_the_same_text_has_the_same_verdict() -> None:
    text = "I love it. I hate it. It is a chair."
    assert Offline().analyse(text) == Offline().analyse(text)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("vaderSentiment"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotReady, match="vaderSentiment"):
        Offline().analyse("hello")
