"""When a model is not believed: guesses, silence, loops."""

import pytest

from app.speech.doubt import believed, is_doubtful
from app.speech.engine import Heard, Word


def heard(text: str, confidence: float = -0.3, silence: float = 0.1, repetition: float = 1.5) -> Heard:
    words = [Word(number / 2, number / 2 + 0.4, f" {word}") for number, word in enumerate(text.split())]
    return Heard(words, confidence, silence, repetition)


def said(of: Heard) -> str:
    return "".join(word.text for word in believed(of)).strip()


def test_what_is_likely_is_believed() -> None:
    assert said(heard("Good morning to you.")) == "Good morning to you."
    assert not is_doubtful(-0.3, 0.1, 1.5)


def test_what_is_unlikely_is_tried_again_but_kept() -> None:
    assert is_doubtful(-1.2, 0.1, 1.5)
    assert is_doubtful(-0.1, 0.1, 2.5)
    assert said(heard("Hard to hear.", confidence=-1.2)) == "Hard to hear."


@pytest.mark.parametrize("invented", ["Thanks for watching!", "ご視聴ありがとうございました"])
def test_where_nobody_speaks_nothing_was_said(invented: str) -> None:
    assert said(heard(invented, confidence=-1.1, silence=0.7)) == ""
    assert not is_doubtful(-1.1, 0.7, 1.5)  # and nothing better is to be had
    assert said(heard(invented, confidence=-0.3, silence=0.7)) == invented  # somebody did say it


@pytest.mark.parametrize("phrase", ["no", "thank you.", "I do not know", "はい そう です ね"])
def test_a_loop_is_said_once(phrase: str) -> None:
    loop = " ".join(["Well,"] + [phrase] * 30 + ["and so on."])
    assert said(heard(loop, repetition=9.0)) == f"Well, {phrase} and so on."


def test_people_repeat_themselves_too() -> None:
    assert said(heard("no no no no no no", repetition=1.9)) == "no no no no no no"
    assert said(heard("no no no, and then no no no", repetition=2.5)) == "no no no, and then no no no"


def test_nothing_stays_nothing() -> None:
    assert said(heard("")) == ""
    assert said(heard("", repetition=3.0)) == ""
