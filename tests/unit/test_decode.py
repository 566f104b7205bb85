"""Decoding measures the file instead of believing it, and says in words what is wrong with it."""

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from app.errors import Permanent
from app.speech.decode import decode
from app.speech.windows import RATE, windows
from tests.support.sounds import encoded, noise, picture_only, tone, wav

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes) -> Path:
        path = tmp_path / "12:30 secret-name.wav"  # a colon could be read as a protocol
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"these are words\n" * 200, "not an audio file PyAV can read"),
        (random.Random(1).randbytes(50_000), "not an audio file PyAV can read"),
        (b"RIFF", "not an audio file PyAV can read"),
        (b"#EXTM3U\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n", "not an audio file PyAV can read"),
        (b"ffconcat version 1.0\nfile other.wav\n", "not an audio file PyAV can read"),
        (wav(tone(1), rate=0), "not an audio file PyAV can read"),
        (wav(tone(1), channels=99), "all of its .* packets are damaged"),
        (wav(tone(0)), "holds no audio"),
        (wav(tone(0), claim=32_000), "holds no audio"),
        (wav(tone(1)[:1]), r"too short to hold speech: 0\.00006 s"),
        (wav(tone(0.05)), r"too short to hold speech: 0\.05 s"),
        (wav(tone(11)), "longer than the limit of 10 s"),
        (wav(tone(1)[:8000], rate=1), "longer than the limit of 10 s"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(write: Write, data: bytes, reason: str) -> None:
    path = write(data)
    with pytest.raises(Permanent, match=reason) as caught:
        decode(path, max_seconds=10)
    assert "secret-name" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


def test_a_playlist_opens_no_other_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other.wav").write_bytes(wav(tone(1)))
    with pytest.raises(Permanent, match="not an audio file"):
        decode(write(b"ffconcat version 1.0\nfile other.wav\n"), max_seconds=10)


def test_a_film_without_sound(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="no audio stream"):
        decode(picture_only(tmp_path / "film.mp4"), max_seconds=10)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_becomes_16_khz_mono(write: Write, rate: int, channels: int) -> None:
    decoded = decode(write(wav(np.repeat(tone(2, rate), channels), rate, channels=channels)), max_seconds=10)
    assert decoded.samples.dtype == np.float32
    assert decoded.samples.ndim == 1
    assert decoded.seconds == pytest.approx(2, abs=0.01)
    assert decoded.note is None
    assert np.abs(np.fft.rfft(decoded.samples)).argmax() / decoded.seconds == pytest.approx(440, abs=2)
    assert np.abs(decoded.samples).max() == pytest.approx(8000 / 32768, rel=0.05)


def test_a_float_file_may_hold_anything(write: Write) -> None:
    samples = np.full(RATE, 0.5, "<f4")
    samples[100:104] = np.nan, np.inf, -np.inf, 7.0
    form = struct.pack("<IHHIIHH", 16, 3, 1, RATE, RATE * 4, 4, 32)
    data = b"RIFF" + struct.pack("<I", 36 + samples.nbytes) + b"WAVEfmt " + form
    decoded = decode(write(data + b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()), max_seconds=10)
    assert np.isfinite(decoded.samples).all()
    assert np.abs(decoded.samples).max() <= 1


def test_a_truncated_wav_is_read_as_far_as_it_goes(write: Write) -> None:
    decoded = decode(write(wav(tone(20), claim=60 * RATE * 2)), max_seconds=100)
    assert decoded.seconds == pytest.approx(20)
    assert decoded.note == ("truncated: the header promises 60.0 s, the file holds 20.0 s; transcribed what is there")


@pytest.mark.parametrize("claim", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 21 * RATE * 2 - 100])
def test_a_header_that_promises_nothing_is_no_truncation(write: Write, claim: int) -> None:
    assert decode(write(wav(tone(20), claim=claim)), max_seconds=100).note is None


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.flac", "flac"), ("a.m4a", "aac"), ("a.aac", "aac")],
)
def test_damage_in_the_middle_loses_only_the_middle(tmp_path: Path, name: str, codec: str) -> None:
    path = encoded(tmp_path / name, codec, np.tile(noise(1, 0.3), 60), rate=48_000)  # 20 s
    whole = decode(path, max_seconds=100)
    assert whole.note is None
    assert whole.seconds == pytest.approx(20, abs=0.2)
    data = bytearray(path.read_bytes())
    middle, length = len(data) // 2, len(data) // 6
    data[middle : middle + length] = random.Random(2).randbytes(length)
    path.write_bytes(data)
    damaged = decode(path, max_seconds=100)
    assert 14 < damaged.seconds < 19.9
    assert damaged.note
    assert damaged.note.startswith("damaged: ")


def test_a_truncated_flac_says_so(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.flac", "flac", np.tile(noise(1, 0.3), 30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    note = decode(path, max_seconds=100).note
    assert note
    assert note.startswith("truncated: the header promises 10.0 s, the file holds 4.")


def test_the_format_may_change_within_a_file(tmp_path: Path) -> None:
    first = encoded(tmp_path / "a.mp3", "libmp3lame", tone(3, 48_000), rate=48_000)
    second = encoded(tmp_path / "b.mp3", "libmp3lame", tone(3, 22_050), rate=22_050)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert decode(first, max_seconds=100).seconds == pytest.approx(6, abs=0.3)


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    chance = random.Random(3)
    sources = [wav(tone(1))]
    for name, codec in (("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.flac", "flac"), ("a.m4a", "aac")):
        sources.append(encoded(tmp_path / name, codec, tone(2, 48_000)).read_bytes())
    path = tmp_path / "damaged"
    for _ in range(400):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.choice([1, 5, 60])):
            data[chance.randrange(min(len(data), chance.choice([60, 400, len(data)])))] = chance.randrange(256)
        path.write_bytes(data)
        with suppress(Permanent):
            assert decode(path, max_seconds=10).samples.size


def test_windows_follow_each_other_and_cut_in_the_pause() -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, 100 * RATE).astype(np.float32)
    samples[27 * RATE : 28 * RATE] = 0
    cuts = list(windows(samples, 30))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == samples.size
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    assert 27 * RATE < cuts[0][1] < 28 * RATE
    assert all(20 * RATE < end - start < 40 * RATE for start, end in cuts[:-1])
    assert list(windows(samples[: 31 * RATE], 30)) == [(0, 31 * RATE)]
    assert list(windows(samples[:0], 30)) == []
