"""Finding the speech in a recording of any length, holding no more than a minute of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of everything an engine hears."""

CHUNK = 30 * RATE
"""What a Whisper model hears at once, samples."""

# -60 dB of full scale: what nobody speaks up to. Digital silence and the faint noise of a microphone that is off need
# neither detector nor model.
_QUIET = 0.001
# Quieter sound is raised to this peak. At a peak of -45 dB the detector found 40 % less of the same speech, at -55 dB
# 90 % less; now all. The model too hears loud speech better: 18 min at 0 to -45 dB, tiny.en: word error rate 0.224
# instead of 0.251 (0.239 with whole chunks raised, 0.229 to the same root mean square), single sentences at -30 dB
# 0.106 instead of 0.218.
_LOUD = 0.9
_BLOCK = 60 * RATE  # what is looked at in one go: twice the longest stretch, so that each look settles something
_MARGIN = RATE // 2  # what ends nearer than this to a block's end is looked at again with what follows


@dataclass(frozen=True)
class Stretch:
    """Speech without a pause of note. `start`: sample in the recording; `samples`: float32 [n], n ≤ CHUNK."""

    start: int
    samples: NDArray[np.float32]

    @property
    def end(self) -> int:
        return self.start + self.samples.size


def stretches(pieces: Iterator[NDArray[np.float32]], start: int = 0) -> Iterator[Stretch | int]:
    """The speech in `pieces` (float32 [n], 16 kHz, mono) in order, cut in its pauses, as Stretches.

    `start`: the first piece's place in the recording, samples. Between them come numbers: up to that sample everything
    has been looked at.
    """
    block = np.empty(0, np.float32)
    for piece in pieces:
        block = np.concatenate([block, piece])
        while block.size >= _BLOCK:
            found, settled = _settled(block[:_BLOCK])
            yield from _placed(block, found, start)
            start += settled
            yield start
            block = block[settled:]
    yield from _placed(block, _speech(block), start)
    yield start + block.size


def _settled(block: NDArray[np.float32]) -> tuple[list[tuple[int, int]], int]:
    """The speech that ends well inside the block, and up to where the block is done with."""
    found = _speech(block)
    edge = block.size - _MARGIN
    done = [part for part in found if part[1] <= edge]
    if len(done) == len(found):
        return done, edge
    # The detector needs a moment before the first word, but must not hear the last stretch again.
    return done, max(done[-1][1] if done else 0, found[len(done)][0] - _MARGIN)


def _speech(block: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Where somebody speaks: first and last sample."""
    if not block.size or max(block.max(), -block.min()) <= _QUIET:
        return []
    from faster_whisper.vad import get_speech_timestamps

    # Pauses of up to 0.8 s stay as they are, longer ones become that long: they tell the model where sentences end.
    # Mean word error rate of five sets (clean to noisy, 17 min), tiny.en: 0.161 so, 0.166 with 300 and 150 ms, 0.176
    # with 500 and 200 ms, 0.180 with the library's own 2000 and 400 ms; 0.175 for the whole sound through its loop.
    found = get_speech_timestamps(
        _raised(block),
        min_silence_duration_ms=800,
        speech_pad_ms=400,
        min_speech_duration_ms=60,
        max_speech_duration_s=CHUNK / RATE - 1,
    )
    return [(part["start"], min(part["end"], part["start"] + CHUNK)) for part in found]


def _raised(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    peak = max(sound.max(), -sound.min())
    return sound * np.float32(_LOUD / peak) if 0 < peak < _LOUD else sound


def _placed(block: NDArray[np.float32], found: list[tuple[int, int]], start: int) -> Iterator[Stretch]:
    for first, last in found:
        yield Stretch(start + first, block[first:last].copy())


@dataclass
class Chunk:
    """Stretches that a model hears together, one after the other, at most 30 s in all."""

    stretches: list[Stretch]

    @property
    def samples(self) -> NDArray[np.float32]:
        """float32 [n], n ≤ CHUNK; each stretch as loud as the others."""
        return np.concatenate([_raised(stretch.samples) for stretch in self.stretches])

    @property
    def size(self) -> int:
        return sum(stretch.samples.size for stretch in self.stretches)

    def takes(self, stretch: Stretch) -> bool:
        return self.size + stretch.samples.size <= CHUNK

    def after(self, seconds: float) -> "Chunk | None":
        """What comes later than `seconds` into the chunk, in a chunk of its own; None: nothing to speak of."""
        left, rest = round(seconds * RATE), []
        for stretch in self.stretches:
            if left < stretch.samples.size - _MARGIN:
                first = max(left, 0)
                rest.append(Stretch(stretch.start + first, stretch.samples[first:]))
            left -= stretch.samples.size
        return Chunk(rest) if rest else None

    def moment(self, seconds: float, *, ends: bool = False) -> float:
        """Seconds in the recording of what is heard `seconds` into the chunk; `ends`: of an end there."""
        left = seconds * RATE
        for stretch in self.stretches:
            if left < stretch.samples.size or (ends and left <= stretch.samples.size):
                return (stretch.start + max(left, 0.0)) / RATE
            left -= stretch.samples.size
        return self.stretches[-1].end / RATE
