"""Speech is cut so that nothing is lost, heard twice or moved, whatever the recording and however it arrives."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.speech import voice
from app.speech.voice import RATE, Chunk, Stretch, stretches

Sound = NDArray[np.float32]

# All lengths are those of the real thing at 100 samples in a second, so that minutes take no time.
BLOCK, MARGIN, LONGEST, MOST = 6000, 50, 2900, 3000


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # others use the machine too


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice, "_BLOCK", BLOCK)
        patch.setattr(voice, "_MARGIN", MARGIN)
        patch.setattr(voice, "CHUNK", MOST)
        yield


@st.composite
def recordings(draw: st.DrawFn) -> Sound:
    """Talk and silence in turn. Each sample of talk is its own place in the recording, counted from 1."""
    lengths = draw(st.lists(st.one_of(st.integers(1, 200), st.integers(1, 9000)), max_size=12))
    first = draw(st.booleans())
    talk = [np.full(length, (number + first) % 2) for number, length in enumerate(lengths)]
    loud = np.concatenate([*talk, np.zeros(0)])
    return (loud * np.arange(1, loud.size + 1)).astype(np.float32)


@st.composite
def detectors(draw: st.DrawFn) -> "Detector":
    pad = draw(st.integers(0, 40))
    return Detector(pause=draw(st.integers(2 * pad + 1, 81)), pad=pad)


class Detector:
    """Hears what is not zero: bears with pauses up to `pause` and adds `pad` on both sides, as the real one does."""

    def __init__(self, pause: int, pad: int) -> None:
        self.pause, self.pad = pause, pad

    def __repr__(self) -> str:
        return f"Detector({self.pause}, {self.pad})"

    def __call__(self, block: Sound) -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff(block > 0, prepend=False, append=False)).tolist()
        found: list[tuple[int, int]] = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            if found and first - found[-1][1] < self.pause:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
        if found and block.size - found[-1][1] < self.pause:
            found[-1] = (found[-1][0], block.size)  # nobody knows whether it is over
        most = LONGEST - 2 * self.pad
        found = [(at, min(at + most, last)) for first, last in found for at in range(first, last, most)]
        ends = [-self.pad, *(edge for part in found for edge in part), block.size + self.pad]
        pads = [min(self.pad, (after - before) // 2) for before, after in zip(ends[::2], ends[1::2], strict=True)]
        return [
            (max(0, first - before), min(block.size, last + after))
            for (first, last), (before, after) in zip(found, pairwise(pads), strict=True)
        ]


def cut(sound: Sound, sizes: Sequence[int]) -> Iterator[Sound]:
    """The sound in pieces of these sizes, again and again."""
    place = number = 0
    while place < sound.size:
        size = sizes[number % len(sizes)]
        yield sound[place : place + size]
        place, number = place + size, number + 1


def taken(sound: Sound, sizes: Sequence[int], detector: Detector, start: int = 0) -> list[Stretch | int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice, "_speech", detector)
        return [*stretches(cut(sound, sizes), start)]


@unhurried
@given(recordings(), detectors(), st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.integers(0, 10**9))
def test_every_sample_of_speech_comes_once_and_in_order(
    sound: Sound, detector: Detector, sizes: list[int], start: int
) -> None:
    found = taken(sound, sizes, detector, start)
    parts = [part for part in found if isinstance(part, Stretch)]
    heard = np.concatenate([*(part.samples for part in parts), sound[:0]])
    assert np.array_equal(heard[heard > 0], sound[sound > 0])
    for part in parts:
        assert 0 < part.samples.size <= MOST
        assert np.array_equal(part.samples, sound[part.start - start : part.end - start])


@unhurried
@given(recordings(), detectors(), st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_a_number_is_behind_all_that_comes_before_it(sound: Sound, detector: Detector, sizes: list[int]) -> None:
    found = taken(sound, sizes, detector)
    reached = 0
    for part in found:
        if isinstance(part, Stretch):
            assert part.start >= reached
            reached = part.end
        else:
            assert part >= reached
            reached = part
    numbers = [part for part in found if isinstance(part, int)]
    assert all(one < other for one, other in pairwise(numbers))
    assert found[-1] == sound.size


@unhurried
@given(recordings(), detectors(), st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_the_size_of_the_pieces_changes_nothing(sound: Sound, detector: Detector, sizes: list[int]) -> None:
    def told(sizes: Sequence[int]) -> list[tuple[int, int]]:
        found = taken(sound, sizes, detector)
        return [(part.start, part.end) if isinstance(part, Stretch) else (part, part) for part in found]

    assert told(sizes) == told([max(1, sound.size)])


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    place = draw(st.integers(0, 10**6))
    parts: list[Stretch] = []
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 400)), min_size=1, max_size=8)):
        place += gap
        parts.append(Stretch(place, np.arange(place, place + size, dtype=np.float32)))
        place += size
    return Chunk(parts)


@unhurried
@given(chunks())
def test_each_moment_of_a_chunk_is_one_of_the_recording(chunk: Chunk) -> None:
    number = 0
    for part in chunk.stretches:
        for place in (0, part.samples.size // 2, part.samples.size - 1):
            second = (number + place + 0.5) / RATE
            assert chunk.moment(second) * RATE == pytest.approx(part.start + place + 0.5)
            assert chunk.moment(second, ends=True) * RATE == pytest.approx(part.start + place + 0.5)
        number += part.samples.size
    assert chunk.moment(0) == chunk.stretches[0].start / RATE
    assert chunk.moment(chunk.size / RATE, ends=True) * RATE == pytest.approx(chunk.stretches[-1].end, abs=0.01)


def test_at_a_seam_one_stretch_ends_and_the_next_one_starts() -> None:
    chunk = Chunk([Stretch(0, np.zeros(RATE, np.float32)), Stretch(5 * RATE, np.zeros(RATE, np.float32))])
    assert chunk.moment(1) == 5
    assert chunk.moment(1, ends=True) == 1


@unhurried
@given(chunks(), st.lists(st.floats(-1, 1), min_size=2), st.booleans())
def test_moments_never_run_backwards_nor_leave_the_chunk(
    chunk: Chunk,
    seconds: list[float],
    ends: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    moments = [chunk.moment(second, ends=ends) for second in sorted(seconds)]
    assert moments == sorted(moments)
    assert moments[0] >= chunk.stretches[0].start / RATE
    assert moments[-1] <= chunk.stretches[-1].end / RATE


@unhurried
@given(chunks(), st.integers(0, 4000))
def test_the_rest_of_a_chunk_keeps_its_place(chunk: Chunk, heard: int) -> None:
    places = np.concatenate([part.samples for part in chunk.stretches])
    left = chunk.after(heard / RATE)
    rest = left.stretches if left else []
    for part in rest:
        assert np.array_equal(part.samples, np.arange(part.start, part.end, dtype=np.float32))
    kept = np.concatenate([*(part.samples for part in rest), places[:0]])
    assert np.isin(kept, places[heard:]).all()
    # What is left out is too short for a word.
    lost = np.setdiff1d(places[heard:], kept)
    assert all(np.isin(np.arange(part.start, part.end), lost).sum() <= MARGIN for part in chunk.stretches)


def test_a_chunk_takes_what_a_model_hears_at_once() -> None:
    chunk = Chunk([Stretch(0, np.zeros(MOST - 10, np.float32))])
    assert chunk.takes(Stretch(5000, np.zeros(10, np.float32)))
    assert not chunk.takes(Stretch(5000, np.zeros(11, np.float32)))


def test_stretches_are_heard_as_loud_as_each_other() -> None:
    parts = [Stretch(0, np.array([0.001, -0.002], np.float32)), Stretch(9, np.array([0.5, -0.95], np.float32))]
    assert Chunk(parts).samples == pytest.approx([0.45, -0.9, 0.5, -0.95])
    assert Chunk([Stretch(0, np.zeros(3, np.float32))]).samples == pytest.approx([0, 0, 0])
