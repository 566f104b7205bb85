"""Segments as subtitles."""

from app.speech.subtitles import srt, vtt

SEGMENTS = [
    {"start": 0.0, "end": 1.5, "text": "おはよう"},
    {"start": 3599.9996, "end": 36_000.25, "text": "a < b\n\n & c --> d "},
    {"start": 36_001, "end": 36_002, "text": " "},
]


def test_subrip() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nおはよう\n"
        "\n2\n01:00:00,000 --> 10:00:00,250\na < b\n& c --> d\n"
        "\n3\n10:00:01,000 --> 10:00:02,000\n…\n"
    )


def test_webvtt() -> None:
    assert vtt(SEGMENTS[:2]) == (
        "WEBVTT\n"
        "\n00:00:00.000 --> 00:00:01.500\nおはよう\n"
        "\n01:00:00.000 --> 10:00:00.250\na &lt; b\n&amp; c --&gt; d\n"
    )


def test_nothing_was_said() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n"
