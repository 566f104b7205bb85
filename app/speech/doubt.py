"""When not to believe a model: the thresholds of Whisper's authors, and a guard against loops.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, section 4.5.
"""

from collections.abc import Sequence

from app.speech.engine import Heard, Word

CONFIDENCE = -1.0  # mean log probability of the tokens; below: guessed
SILENCE = 0.6  # probability that nobody speaks
REPETITION = 2.4  # compression ratio of the text; above: a loop
_REPEATS = 3  # said more often in a row than this by a looping model, it was said once
_LONGEST = 20  # words in a phrase that is looked for


def is_doubtful(confidence: float, silence: float, repetition: float) -> bool:
    """Whether a chunk's text is worth another try."""
    if silence > SILENCE and confidence < CONFIDENCE:
        return False  # nobody speaks: nothing better is to be had
    return confidence < CONFIDENCE or repetition > REPETITION


def believed(heard: Heard) -> Sequence[Word]:
    """The words of a chunk that can be believed: none where nobody speaks, a loop's phrase once."""
    if heard.silence > SILENCE and heard.confidence < CONFIDENCE:
        return ()
    return _without_loops(heard.words) if heard.repetition > REPETITION else heard.words


def _without_loops(words: Sequence[Word]) -> list[Word]:
    kept: list[Word] = []
    place = 0
    while place < len(words):
        length, times = _loop(words, place)
        kept += words[place : place + length]
        place += length * times
    return kept


def _loop(words: Sequence[Word], place: int) -> tuple[int, int]:
    """The shortest phrase that starts at `place` and is repeated too often: its length, and how often; else (1, 1)."""
    said = [word.text.strip().casefold() for word in words[place:]]
    for length in range(1, min(_LONGEST, len(said) // 2) + 1):
        times = 1
        while said[times * length : (times + 1) * length] == said[:length]:
            times += 1
        if times > _REPEATS:
            return length, times
    return 1, 1
