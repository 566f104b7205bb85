"""From words to the segments that are stored, shown and used as subtitles."""

from collections.abc import Iterable, Iterator

from app.speech.engine import Segment, Word

_LONGEST = 15.0  # seconds of one segment
_PAUSE = 0.8  # seconds without a word that end one
_SHORTEST = 1.0  # seconds; a full stop earlier than that ("Dr.") ends nothing
_ENDS = (".", "?", "!", "。", "？", "！", "…")
_WITHOUT_SPACES = {"ja", "zh", "yue"}


def segments(words: Iterable[Word], after: float, limit: float) -> Iterator[Segment]:
    """Words (times in seconds of the recording) as segments: sentences, parts of long ones, never across a pause.

    `after`: where the segment before ends; `limit`: the recording's length. A model guesses its times: here they never
    run backwards nor beyond the recording.
    """
    group: list[Word] = []
    for word in words:
        if group and _is_over(group, word):
            yield from _segment(group, after, limit)
            after = max(after, group[-1].end)
            group = []
        group.append(word)
    yield from _segment(group, after, limit)


def text(of: Iterable[Segment], language: str) -> str:
    """The whole text; languages written without spaces get none."""
    return ("" if language in _WITHOUT_SPACES else " ").join(segment.text for segment in of)


def _is_over(group: list[Word], word: Word) -> bool:
    said = group[-1].end - group[0].start
    return (
        word.start - group[-1].end > _PAUSE
        or word.end - group[0].start > _LONGEST
        or (group[-1].text.rstrip().endswith(_ENDS) and said >= _SHORTEST)
    )


def _segment(group: list[Word], after: float, limit: float) -> Iterator[Segment]:
    words = "".join(word.text for word in group).strip()
    if words:
        start = min(max(group[0].start, after), limit)
        yield Segment(round(start, 2), round(min(max(group[-1].end, start), limit), 2), words)
