"""Segments as subtitles: SubRip (.srt), and WebVTT (https://www.w3.org/TR/webvtt1/)."""

from collections.abc import Iterable, Mapping
from typing import Any

Segments = Iterable[Mapping[str, Any]]


def srt(segments: Segments) -> str:
    """`segments`: [{"start": seconds, "end": seconds, "text": words}], as in `transcripts.segments`."""
    return "\n".join(
        f"{number}\n{_clock(segment['start'], ',')} --> {_clock(segment['end'], ',')}\n{_lines(segment['text'])}\n"
        for number, segment in enumerate(segments, 1)
    )


def vtt(segments: Segments) -> str:
    """As `srt`. What would be markup is escaped."""
    cues = (
        f"{_clock(segment['start'], '.')} --> {_clock(segment['end'], '.')}\n"
        + _lines(segment["text"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        + "\n"
        for segment in segments
    )
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    return (
        f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}"
        f"{point}{milliseconds % 1000:03}"
    )


def _lines(text: str) -> str:
    """An empty line would end the cue."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) or "…"
