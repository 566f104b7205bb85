"""Decoding measures the file instead of believing it, and says in words what is wrong with it."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import Permanent
from app.speech import decode
from app.speech.decode import PIECE, Sound, measure
from app.speech.voice import RATE
from tests.support.servers import ROOT
from tests.support.sounds import encoded, film, noise, picture_only, tone, wav

Write = Callable[[bytes], Path]

LEVEL = 8000 / 32768 / 2**0.5  # root mean square of `tone`
VORBIS = {"strict": "experimental"}  # FFmpeg's own; it knows stereo only


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes) -> Path:
        path = tmp_path / "12:30 secret-name.wav"  # a colon could be read as a protocol
        path.write_bytes(data)
        return path

    return write


def heard(path: Path, *, max_seconds: float = 100) -> tuple[Sound, NDArray[np.float32]]:
    """The sound as measured and what it yields, which is as long, and what an engine can take."""
    sound = measure(path, max_seconds=max_seconds)
    pieces = [*sound.samples()]
    samples = np.concatenate(pieces)
    assert samples.size == round(sound.seconds * RATE)
    assert samples.dtype == np.float32
    assert max(piece.size for piece in pieces) <= PIECE
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1
    return sound, samples


def level(samples: NDArray[np.float32], start: float = 0, end: float | None = None) -> float:
    """Root mean square of the seconds from `start` to `end`."""
    part = samples[round(start * RATE) : None if end is None else round(end * RATE)]
    return float(np.sqrt(np.square(part).mean()))


def pitch(samples: NDArray[np.float32]) -> float:
    """The strongest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(samples.size))).argmax() / samples.size * RATE)


def is_the_tone(path: Path, *, seconds: float = 2, rel: float = 0.08) -> None:
    sound, samples = heard(path)
    assert sound.note is None
    assert sound.seconds == pytest.approx(seconds, abs=0.07)  # coders pad their first and last frame
    assert pitch(samples) == pytest.approx(440, abs=1)
    assert level(samples, 0.5, seconds - 0.5) == pytest.approx(LEVEL, rel=rel)


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
        (wav(tone(1), rate=2**31 - 1), "all of its .* packets are damaged"),
        (wav(tone(1), rate=2**32 - 1), "not an audio file PyAV can read"),
        (wav(tone(1), channels=99), "all of its .* packets are damaged"),
        (wav(tone(1), channels=255), "all of its .* packets are damaged"),
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
        measure(path, max_seconds=10)
    assert "secret-name" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


def test_a_playlist_opens_no_other_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other.wav").write_bytes(wav(tone(1)))
    with pytest.raises(Permanent, match="not an audio file"):
        measure(write(b"ffconcat version 1.0\nfile other.wav\n"), max_seconds=10)


def test_a_film_without_sound(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="no audio stream"):
        measure(picture_only(tmp_path / "film.mp4"), max_seconds=10)


def test_exactly_the_longest_length_is_taken(write: Write) -> None:
    assert heard(write(wav(tone(10, 44_100), 44_100)), max_seconds=10)[0].seconds == 10


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_becomes_16_khz_mono(write: Write, rate: int, channels: int) -> None:
    path = write(wav(np.repeat(tone(2, rate), channels), rate, channels=channels))
    is_the_tone(path, rel=0.01)
    assert heard(path)[0].seconds == 2


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("form", ["u8", "s16le", "s24le", "s32le", "f32le", "f64le", "alaw", "mulaw"])
def test_every_sample_format_of_wav(tmp_path: Path, form: str, channels: int) -> None:
    path = encoded(tmp_path / "a.wav", f"pcm_{form}", np.tile(tone(2, 48_000), (channels, 1)))
    extensible = path.read_bytes()[20:22] == b"\xfe\xff"
    assert extensible == (channels > 2 or form in {"s24le", "s32le"})
    is_the_tone(path, rel=0.02)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("constant.mp3", "libmp3lame", {"b": "64000"}),
        ("variable.mp3", "libmp3lame", {"flags": "+qscale", "global_quality": "472"}),
        ("a.m4a", "aac", {}),
        ("a.aac", "aac", {}),
        ("lossless.m4a", "alac", {}),
        ("a.ogg", "libopus", {}),
        ("a.opus", "libopus", {}),
        ("a.oga", "vorbis", VORBIS),
        ("a.flac", "flac", {}),
        ("a.webm", "libopus", {}),
        ("vorbis.webm", "vorbis", VORBIS),
        ("a.mkv", "libmp3lame", {}),
        ("a.wma", "wmav2", {"b": "128000"}),
        ("a.aiff", "pcm_s16be", {}),
        ("a.au", "pcm_s16be", {}),
        ("a.caf", "pcm_s16le", {}),
        ("a.w64", "pcm_s16le", {}),
        ("a.mov", "pcm_s16le", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_container_and_codec(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], channels: int
) -> None:
    if codec == "vorbis" and channels == 1:
        return
    is_the_tone(encoded(tmp_path / name, codec, np.tile(tone(2, 48_000), (channels, 1)), options=options))


@pytest.mark.skipif("libopencore_amrnb" not in av.codecs_available, reason="this PyAV can't write amr")
@pytest.mark.parametrize("name", ["a.amr", "a.3gp"])
def test_a_telephone_recording(tmp_path: Path, name: str) -> None:
    is_the_tone(encoded(tmp_path / name, "libopencore_amrnb", tone(2, 8000), 8000), rel=0.3)


FILMS = [
    ("a.mp4", "mpeg4", "aac"),
    ("a.mov", "mpeg4", "aac"),
    ("a.webm", "libvpx", "libopus"),
    ("a.mkv", "mpeg4", "aac"),
]


@pytest.mark.parametrize(("name", "picture", "codec"), FILMS)
def test_of_a_film_the_first_audio_stream_is_heard(tmp_path: Path, name: str, picture: str, codec: str) -> None:
    other = np.repeat(tone(1, 48_000), 2)  # an octave lower
    is_the_tone(film(tmp_path / name, picture, codec, tone(2, 48_000), other))


@pytest.mark.parametrize(("name", "picture", "codec"), FILMS)
def test_gaps_between_time_stamps_are_silent_as_in_a_player(
    tmp_path: Path, name: str, picture: str, codec: str
) -> None:
    gaps = [(1.0, 3.0), (1.5, 0.06), (2.0, 0.06)]  # the last two together are more than jitter
    sound, samples = heard(film(tmp_path / name, picture, codec, tone(3, 48_000), late=2, gaps=gaps))
    assert sound.seconds == pytest.approx(8.12, abs=0.05)
    assert sound.note == "gaps: for 5.1 s of 8.1 s the file holds no sound; taken as silence"
    assert level(samples, 0, 1.9) == 0
    assert level(samples, 2.1, 2.9) == pytest.approx(LEVEL, rel=0.08)
    assert level(samples, 3.1, 5.9) == 0
    assert level(samples, 6.1, 6.9) == pytest.approx(LEVEL, rel=0.08)
    # Gaps that don't fit into the limit are not believed; the sound follows on.
    assert heard(film(tmp_path / name, picture, codec, tone(3, 48_000), gaps=[(1, 3600.0)]))[0].seconds < 3.1


def test_a_picture_longer_than_its_sound_promises_no_sound(tmp_path: Path) -> None:
    for name, picture, codec in FILMS:
        assert measure(film(tmp_path / name, picture, codec, tone(2, 48_000), pictures=9), max_seconds=10).note is None


def test_a_recording_cut_out_of_a_broadcast_begins_at_its_own_first_time_stamp(tmp_path: Path) -> None:
    for name, codec in (("a.m4a", "aac"), ("a.webm", "libopus")):
        is_the_tone(film(tmp_path / name, None, codec, tone(2, 48_000), late=1000))


def test_recordings_joined_end_to_end(tmp_path: Path) -> None:
    first = encoded(tmp_path / "a.mp3", "libmp3lame", tone(3, 48_000))
    second = encoded(tmp_path / "b.mp3", "libmp3lame", tone(3, 22_050), rate=22_050)
    first.write_bytes(first.read_bytes() + second.read_bytes())  # the format changes
    assert heard(first)[0].seconds == pytest.approx(6, abs=0.3)
    again = encoded(tmp_path / "a.ogg", "libopus", tone(3, 48_000))
    again.write_bytes(again.read_bytes() * 2)  # the time stamps begin again
    is_the_tone(again, seconds=6)


def test_a_format_that_changes_all_the_time_is_refused(tmp_path: Path) -> None:
    one, other = (
        [*adts_frames(encoded(tmp_path / f"{rate}.aac", "aac", tone(13, rate), rate))] for rate in (44_100, 48_000)
    )
    path = tmp_path / "both.aac"
    path.write_bytes(b"".join(chain.from_iterable(zip(one, other, strict=False))))
    with pytest.raises(Permanent, match="sample format changes more than 1000 times"):
        measure(path, max_seconds=100)


def adts_frames(path: Path) -> Iterator[bytes]:
    data, start = path.read_bytes(), 0
    while start < len(data):
        length = int.from_bytes(data[start + 3 : start + 6]) >> 5 & 0x1FFF
        yield data[start : start + length]
        start += length


def test_channels_that_cancel_each_other_are_heard(tmp_path: Path) -> None:
    """A microphone with one wire swapped gives the left channel upside down on the right."""
    left = tone(2, 48_000)
    is_the_tone(encoded(tmp_path / "a.wav", "pcm_s16le", np.stack([left, -left])), rel=0.02)
    is_the_tone(encoded(tmp_path / "a.m4a", "aac", np.stack([left, -left])))


def test_one_sided_stereo_loses_half_its_level(tmp_path: Path) -> None:
    left = tone(2, 48_000)
    for sides in ([left, 0 * left], [0 * left, left]):
        _, samples = heard(encoded(tmp_path / "a.wav", "pcm_s16le", np.stack(sides)))
        assert level(samples, 0.5, 1.5) == pytest.approx(LEVEL / 2, rel=0.02)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_float_file_may_hold_anything(write: Write, channels: int) -> None:
    samples = np.full(RATE * channels, 0.5, "<f4")
    samples[100:108] = np.nan, np.inf, -np.inf, 7.0, 3e38, 3e38, -3e38, -3e38
    form = struct.pack("<IHHIIHH", 16, 3, channels, RATE, RATE * 4 * channels, 4 * channels, 32)
    data = b"RIFF" + struct.pack("<I", 36 + samples.nbytes) + b"WAVEfmt " + form
    heard(write(data + b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()))


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.webm", "libopus")])
def test_the_sound_from_a_sample_on_is_the_whole_cut_there(tmp_path: Path, name: str, codec: str) -> None:
    path = film(tmp_path / name, None, codec, noise(9, 0.5), gaps=[] if name == "a.wav" else [(1, 12)])
    sound, samples = heard(path)
    for start in (0, 1, 15_999, samples.size // 2, samples.size - 1, samples.size, samples.size + 1):
        assert np.array_equal(np.concatenate([*sound.samples(start), samples[:0]]), samples[start:])


def test_a_truncated_wav_is_read_as_far_as_it_goes(write: Write) -> None:
    sound, _ = heard(write(wav(tone(20), claim=60 * RATE * 2)))
    assert sound.seconds == pytest.approx(20)
    assert sound.note == "truncated: the header promises 60.0 s, the file holds 20.0 s; transcribed what is there"


@pytest.mark.parametrize("form", ["u8", "s24le", "f32le", "alaw"])
def test_a_truncated_wav_of_any_sample_format_says_so(tmp_path: Path, form: str) -> None:
    path = encoded(tmp_path / "a.wav", f"pcm_{form}", np.tile(tone(8, 48_000), (2, 1)))
    os.truncate(path, path.stat().st_size * 3 // 4)
    assert str(heard(path)[0].note).startswith("truncated: the header promises 8.0 s, the file holds 6.0 s")


@pytest.mark.parametrize("claim", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 21 * RATE * 2 - 100])
def test_a_header_that_promises_nothing_is_no_truncation(write: Write, claim: int) -> None:
    assert measure(write(wav(tone(20), claim=claim)), max_seconds=100).note is None


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.ogg", "libopus"),
        ("a.flac", "flac"),
        ("a.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.webm", "libopus"),
    ],
)
def test_damage_in_the_middle_loses_only_the_middle(tmp_path: Path, name: str, codec: str) -> None:
    path = encoded(tmp_path / name, codec, np.tile(noise(1, 0.3), 60))  # 20 s
    sound, _ = heard(path)
    assert sound.note is None
    assert sound.seconds == pytest.approx(20, abs=0.2)
    data = bytearray(path.read_bytes())
    middle, length = len(data) // 2, len(data) // 6
    data[middle : middle + length] = random.Random(2).randbytes(length)
    path.write_bytes(data)
    damaged, samples = heard(path)
    assert damaged.note
    if name == "a.webm":  # whether the recorder paused there can't be told
        assert damaged.note.startswith("gaps: for 5.")
    else:
        assert damaged.note.startswith("damaged: ")
    if name in {"a.mp3", "a.aac"}:  # these have no time stamps: what comes after moves up
        assert 14 < damaged.seconds < 19.9
    else:
        assert damaged.seconds == pytest.approx(20, abs=0.2)
        assert level(samples, 11, 12) < 0.02  # aac makes some sound of anything
    assert level(samples, 0, 9) == pytest.approx(level(samples, damaged.seconds - 4), rel=0.1)


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.webm", "libopus"), ("a.mkv", "aac")])
def test_a_truncated_file_says_so(tmp_path: Path, name: str, codec: str) -> None:
    path = encoded(tmp_path / name, codec, np.tile(noise(1, 0.3), 30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    note = heard(path)[0].note
    assert note
    assert note.startswith("truncated: the header promises 10.0 s, the file holds 4.")


def flac_of_ten_hours(data: bytearray) -> None:
    data[21:26] = (data[21] & 0xF0).to_bytes() + (36_000 * 48_000).to_bytes(4)


def opus_of_ten_hours(data: bytearray) -> None:
    page = data.rindex(b"OggS")
    struct.pack_into("<q", data, page + 6, 36_000 * 48_000)
    data[page + 22 : page + 26] = bytes(4)
    checksum = 0
    for byte in data[page:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    struct.pack_into("<I", data, page + 22, checksum)


def mp3_of_ten_hours(data: bytearray) -> None:
    struct.pack_into(">I", data, data.index(b"Info") + 8, 36_000 * 48_000 // 1152)


def webm_of_ten_hours(data: bytearray) -> None:
    struct.pack_into(">d", data, data.index(b"\x44\x89\x88") + 3, 36e6)


def m4a_of_ten_hours(data: bytearray) -> None:
    data[:] = data.replace(b"edts", b"free")  # else nothing beyond the edited length is played
    struct.pack_into(">I", data, data.index(b"stts") + 16, 36_000 * 48_000)  # each frame


@pytest.mark.parametrize(
    ("name", "codec", "lie"),
    [
        ("a.flac", "flac", flac_of_ten_hours),
        ("a.ogg", "libopus", opus_of_ten_hours),
        ("a.mp3", "libmp3lame", mp3_of_ten_hours),
        ("a.webm", "libopus", webm_of_ten_hours),
        ("a.m4a", "aac", m4a_of_ten_hours),
    ],
)
def test_ten_hours_in_a_header_are_not_believed(
    tmp_path: Path, name: str, codec: str, lie: Callable[[bytearray], None]
) -> None:
    path = encoded(tmp_path / name, codec, tone(1, 48_000))
    data = bytearray(path.read_bytes())
    lie(data)
    path.write_bytes(data)
    assert heard(path)[0].seconds == pytest.approx(1, abs=0.05)


def test_a_frame_larger_than_any_codec_makes_them_is_damage(tmp_path: Path) -> None:
    for seconds in (20, 30):  # of 48 kHz in a single packet
        path = encoded(tmp_path / f"{seconds}.mkv", "pcm_s16le", tone(seconds, 48_000))
        if seconds == 20:
            is_the_tone(path, seconds=20)
        else:
            with pytest.raises(Permanent, match="damaged"):
                measure(path, max_seconds=100)


def test_packets_without_sound_end_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_PACKETS", 500)
    path = encoded(tmp_path / "a.aac", "aac", tone(1, 48_000))
    head = path.read_bytes()[:7]
    empty = bytes([*head[:3], head[3] & 0xFC, 0, head[5] & 0x1F | 7 << 5, head[6]])
    path.write_bytes(path.read_bytes() + empty * 1000)
    with pytest.raises(Permanent, match="more than 500 packets"):
        measure(path, max_seconds=100)


@pytest.mark.parametrize(("enough", "expected"), [(2**20, Permanent), (2**60, MemoryError)])
def test_only_a_lack_of_memory_is_called_so(
    write: Write, monkeypatch: pytest.MonkeyPatch, enough: int, expected: type[Exception]
) -> None:
    """FFmpeg reports both with the same number: no memory left, and a damaged length that asks for gigabytes."""

    def no_memory(*_: object, **__: object) -> None:
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(av, "open", no_memory)
    monkeypatch.setattr(decode, "_BLOCK", enough)
    with pytest.raises(expected):
        measure(write(wav(tone(1))), max_seconds=10)


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    chance = random.Random(3)
    sources = [wav(tone(1)), film(tmp_path / "film.mp4", "mpeg4", "aac", tone(2, 48_000)).read_bytes()]
    for name, codec in (
        ("a.mp3", "libmp3lame"),
        ("a.ogg", "libopus"),
        ("a.flac", "flac"),
        ("a.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.webm", "libopus"),
    ):
        sources.append(encoded(tmp_path / name, codec, tone(2, 48_000)).read_bytes())
    stereo = np.tile(tone(2, 48_000), (2, 1))
    sources.append(encoded(tmp_path / "vorbis.ogg", "vorbis", stereo, options=VORBIS).read_bytes())
    path = tmp_path / "damaged"
    for _ in range(400):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.choice([1, 5, 60])):
            data[chance.randrange(min(len(data), chance.choice([60, 400, len(data)])))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(1, len(data))])])
        with suppress(Permanent):
            heard(path, max_seconds=10)


def peak(path: Path) -> tuple[str, int]:
    """What a process that reads the recording says (its samples, or why not), and the most memory it took, in MB."""
    script = (
        "import sys; from pathlib import Path; from app.speech.decode import measure\n"
        "try: print(sum(piece.size for piece in measure(Path(sys.argv[1]), max_seconds=21600).samples()))\n"
        "except Exception as error: print(repr(error))\n"
        # Not ru_maxrss, which starts at what the process that forked had.
        "print(next(int(l.split()[1]) // 1024 for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    run = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=True)
    said, memory = run.stdout.splitlines()
    return said, int(memory)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    peaks = []
    for minutes in (30, 180):
        path = tmp_path / f"{minutes}.wav"
        size = minutes * 60 * RATE * 2
        path.write_bytes(wav(tone(0), claim=size))
        os.truncate(path, 44 + size)  # the silence takes no room on the disk
        said, memory = peak(path)
        assert said == str(minutes * 60 * RATE)
        peaks.append(memory)
    assert peaks[1] < 1.2 * peaks[0]


def wav_with_a_huge_title(_: Path) -> bytes:
    data = wav(tone(1))
    return data[:12] + struct.pack("<4sI4s4sI", b"LIST", 0xB0000000, b"INFO", b"INAM", 0x70000000) + data[12:]


def m4a_with_a_huge_table(path: Path) -> bytes:
    """30 million frames of one byte, all in the first chunk."""
    data = encoded(path, "aac", tone(1, 48_000)).read_bytes()
    at = data.index(b"stsz")
    length = int.from_bytes(data[at - 4 : at])
    table = struct.pack(">4sIII", b"stsz", 0, 1, 30_000_000)
    data = (
        data[: at - 4]
        + struct.pack(">I", 20)
        + table
        + struct.pack(">I4s", length - 20, b"free")
        + bytes(length - 28)
        + data[at - 4 + length :]
    )
    at = data.index(b"stsc") + 16
    return data[:at] + struct.pack(">I", 30_000_000) + data[at + 4 :]


@pytest.mark.parametrize("claim", [wav_with_a_huge_title, m4a_with_a_huge_table])
def test_a_small_file_gets_no_large_memory(tmp_path: Path, claim: Callable[[Path], bytes]) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(claim(path))
    said, memory = peak(path)
    assert said.startswith("Permanent(")
    assert memory < 200
