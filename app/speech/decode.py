"""Reading any sound file as the samples that a speech engine hears, piece by piece.

Decoding has its own loop, because the file is a stranger's: its length is measured instead of believed, damaged parts
are stepped over, and only sound and film containers are opened (playlist formats may name other files and addresses).
Nothing here grows with the length of the recording.
"""

import ctypes
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.dictionary
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from app.errors import Permanent
from app.speech.voice import RATE

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SHORTEST = 0.1  # seconds; no word is shorter
PIECE = 5 * RATE
"""The most samples that `Sound.samples` hands over at once."""

_CONTAINERS = "wav,w64,aiff,au,caf,flac,ogg,mp3,aac,amr,mov,matroska,asf"
# Containers whose header counts samples. The length of bare mp3 or aac is a guess from the bit rate (56.2 s for a file
# of 59.9 s), and a guess is no promise. The wav reader of FFmpeg caps the length at the file's size, so `_promised`
# asks the header itself.
_COUNTED = {"flac", "ogg", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
_LINEAR = {1, 3, 6, 7, 0xFFFE}  # PCM, float, a-law, mu-law, extensible: as many bytes each second
_CHUNKS = 100  # of a wav header
_UNKNOWN_WAV_BYTES = 0x7FFF_0000  # recorders that can't seek back leave 0x7FFF…, 0x8000_0000 or 0xFFFF_FFFF

# Containers in which a recorder may leave a pause; in flac and ogg time stamps count samples, and a gap is a loss.
_PAUSING = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "asf"}
_GAP = 0.1  # seconds; stamps of whole milliseconds jitter, and FFmpeg too bears with this much (min_hard_comp)

# No codec has frames of more samples than flac (65,535 of 8 channels), but an ALAC file may claim 16.8 million each.
_FRAME = 2**20  # samples, all channels together
# 8 channels at 192 kHz in 32 bits, 32 times a film's sound. Within 6 h a flac of silence at 655 kHz, 8 channels and a
# few MB would unpack to 450 GB.
_BYTES_PER_SECOND = 192_000 * 8 * 4
_PACKETS = 10_000_000  # each costs 10 µs, even an empty one; 6 h of the shortest (2.5 ms) are 8.6 million
# The table of 20 h of aac takes as much. One damaged byte in a wav made FFmpeg take 2 GB, an m4a of 848 bytes 1.1 GB.
_BLOCK = 128 * 1024**2  # bytes at once
_CHANGES = 1000  # of the format within a file; each costs a new filter, which takes 0.3 to 30 ms

# Else equal channels come out louder than they are, and are clipped: FFmpeg evens that out for whole numbers only.
_MIX = {"rematrix_maxval": "1.0"}
_CANCELLED = 0.01  # -20 dB; one channel alone keeps 0.5


@dataclass(frozen=True)
class Sound:
    """One sound file, measured.

    `seconds`: its length as a player shows it, so silence where its time stamps leave a gap counts; `note`: what a
    person should know about the file (truncated, damaged, gaps), or None.
    """

    path: Path
    seconds: float
    note: str | None

    def samples(self, start: int = 0) -> Iterator[NDArray[np.float32]]:
        """The sound from sample `start` on: float32 [n], 16 kHz, mono, finite, within -1 … 1; n is at most `PIECE`.

        The same file gives the same samples each time, `seconds` of them in all, and `start` only cuts: what comes
        before is decoded and dropped. Raises `Permanent` if the file can't be read any more.
        """
        passed = 0
        for sound in _sound(self.path, self.seconds):
            for first in range(max(start - passed, 0), sound.size, PIECE):
                yield sound[first : first + PIECE]
            passed += sound.size


def measure(path: Path, *, max_seconds: float) -> Sound:
    """Goes over the sound of the file `path` once (of several audio streams the first), holding a frame at a time.

    At most `max_seconds` are decoded, whatever the header says. What is damaged is left out, and what a truncated file
    lacks is missing; the note tells. Gaps between time stamps become silence, as in a player, so that the times of the
    words are the player's too; a gap that leads beyond `max_seconds` is a false stamp's, and is left out.
    Raises `Permanent` with the reason when there is nothing to hear: an empty file, not sound, no audio stream, no or
    too few samples, too long. Messages don't name the path.
    """
    if path.stat().st_size == 0:
        raise Permanent("the file is empty (0 bytes); record or upload it again")
    reading = _Reading(max_seconds)
    with _opened(path) as (container, stream):
        for _ in reading.frames(container, stream):
            pass
        promised = _promised(path, container, stream)
    if not reading.seconds and reading.damaged:
        raise Permanent(f"not an audio file PyAV can read: all of its {reading.damaged} packets are damaged")
    if reading.refused:
        raise Permanent(reading.refused)
    if not reading.seconds:
        raise Permanent("the file holds no audio (0 samples)")
    if reading.seconds < SHORTEST:
        raise Permanent(f"too short to hold speech: {reading.seconds:.5f}".rstrip("0").rstrip(".") + " s")
    return Sound(path, round(reading.position * RATE) / RATE, reading.note(promised))


@contextmanager
def _opened(path: Path) -> "Iterator[tuple[InputContainer, AudioStream]]":
    _limit_blocks()
    limits = {"max_samples": str(_FRAME)}
    options = {"format_whitelist": _CONTAINERS, **limits}  # for the look into the file that opening takes
    try:
        # "file:" keeps a colon in the path from being read as a protocol.
        with av.open(f"file:{path}", metadata_errors="ignore", options=options) as container:
            if not container.streams.audio:
                raise Permanent("the file has no audio stream")
            stream = container.streams.audio[0]
            if decoder := stream.codec_context:  # None: PyAV has none for it, and says so for each packet
                decoder.options = limits
            yield container, stream
    except av.FFmpegError as error:
        if _out_of_memory(error):
            raise
        raise Permanent(f"not an audio file PyAV can read ({error.strerror})") from None


class _Reading:
    """One pass over one file: says where each frame belongs, and counts what goes by."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self.position = 0.0  # seconds of the recording so far, gaps included
        self.seconds = 0.0  # decoded so far
        self.pauses = 0.0  # seconds of gaps that are no loss
        self.damaged = 0  # packets that could not be decoded
        self.refused: str | None = None  # why reading stopped before the end
        self._changes = 0  # of the format
        self._packets = 0
        self._stamp = -math.inf  # seconds, of the last frame
        self._shift = 0.0  # seconds; makes a time stamp a time of the recording

    def frames(
        self, container: "InputContainer", stream: "AudioStream"
    ) -> Iterator[tuple[int | None, AudioFrame | None]]:
        """Each frame, with its place if it does not just continue the one before; at last the end's place, and None.

        Places are samples at 16 kHz. Between two there may be a gap, and the format may change (recordings joined end
        to end, a damaged header).
        """
        self._shift = -_origin(container)
        pausing = container.format.name in _PAUSING
        form, damaged = None, 0
        for frame in self._decoded(container, stream):
            before, form = form, (frame.format.name, frame.layout.name, frame.sample_rate)
            self._changes += form != before
            if self._changes > _CHANGES:
                self.refused = f"its sample format changes more than {_CHANGES} times; convert it to a single one"
                break
            if not _convertible(*form):
                self.damaged += 1
                form = None
                continue
            gap, length = self._gap(frame.time), frame.samples / frame.sample_rate
            if round((self.position + gap + length) * RATE) > round(self.max_seconds * RATE):
                self.refused = f"longer than the limit of {self.max_seconds:g} s; split it, or raise AUDIO_MAX_SECONDS"
                break
            if pausing and self.damaged == damaged:
                self.pauses += gap
            place = round((self.position + gap) * RATE) if gap or form != before else None
            self.position += gap + length
            self.seconds += length
            damaged = self.damaged
            frame.pts = None  # places are ours
            yield place, frame
        yield round(self.position * RATE), None

    def _decoded(self, container: "InputContainer", stream: "AudioStream") -> Iterator[AudioFrame]:
        try:
            for packet in container.demux(stream):
                self._packets += 1
                if self._packets > _PACKETS:
                    self.refused = f"consists of more than {_PACKETS:,} packets; convert it"
                    return
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:  # damaged aac is "invalid data", "not permitted", "not implemented" …
                    if _out_of_memory(error):
                        raise
                    self.damaged += 1
                else:
                    yield from frames
        except av.FFmpegError as error:  # the container itself breaks off; what came before is still good
            if _out_of_memory(error):
                raise
            self.damaged += 1

    def _gap(self, stamp: float | None) -> float:
        """Seconds without sound before the frame of this time stamp."""
        if stamp is None:
            return 0.0
        if stamp < self._stamp:  # they begin again: recordings joined end to end
            self._shift = self.position - stamp
        self._stamp = stamp
        place = stamp + self._shift
        return place - self.position if self.position + _GAP < place <= self.max_seconds else 0.0

    def note(self, promised: float | None) -> str | None:
        missing = (promised or 0.0) - self.seconds - self.pauses
        if promised and missing > _noticed(promised):
            if promised - self.position > missing / 2:  # it ends early; else the gap is inside
                return (
                    f"truncated: the header promises {promised:.1f} s, the file holds {self.position:.1f} s; "
                    "transcribed what is there"
                )
            return f"damaged: {missing:.1f} s of {promised:.1f} s could not be decoded and were left out"
        if self.damaged:
            return f"damaged: {self.damaged} packets could not be decoded and were left out"
        if self.pauses > _noticed(self.position):
            return f"gaps: for {self.pauses:.1f} s of {self.position:.1f} s the file holds no sound; taken as silence"
        return None


def _noticed(seconds: float) -> float:
    """How much of `seconds` s may be missing before a person is told."""
    return max(1.0, 0.02 * seconds)


class _Mono:
    """Frames of one format on their way to 16 kHz, mono.

    They have 20 to a million samples, so they are gathered, or cut, to one second: a call costs more than its samples.
    """

    def __init__(self, form: AudioFrame) -> None:
        self._fifo = AudioFifo()
        self._rate = form.sample_rate
        self._resampler = _resampler(form.layout.nb_channels)

    def sound(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        """What is ready by now: float32 [n]; None ends it, and gives the rest."""
        if frame:
            self._fifo.write(frame)
        while second := self._fifo.read(self._rate, partial=frame is None):
            yield from self._converted(second)
        if frame is None:
            yield from self._converted(None)

    def _converted(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        for converted in filter(None, self._resampler.resample(frame)):  # fed with None, it may answer [None]
            sound = converted.to_ndarray().astype(np.float32, copy=False)
            if not np.isfinite(sound).all():  # float files may hold anything
                np.nan_to_num(sound, copy=False)
            yield _mixed(sound.clip(-1.0, 1.0))


def _resampler(channels: int) -> AudioResampler:
    return AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=RATE, options=_MIX)


@lru_cache(maxsize=128)
def _convertible(name: str, layout: str, rate: int) -> bool:
    """Whether sound of this format can become mono at 16 kHz; 99 channels can't."""
    try:
        trial = AudioFrame(name, layout, samples=1)
        trial.sample_rate = rate
        if not 0 < rate * trial.layout.nb_channels * trial.format.bytes <= _BYTES_PER_SECOND:
            return False
        _resampler(trial.layout.nb_channels).resample(trial)
    except (av.FFmpegError, ValueError) as error:
        if _out_of_memory(error):
            raise
        return False
    return True


@cache
def _limit_blocks() -> None:
    """FFmpeg takes the memory that a header asks for before it looks whether the file has so much.

    PyAV does not pass its limit on, but is linked to it.
    """
    with suppress(AttributeError, OSError):  # unless it was built without FFmpeg's names
        ctypes.CDLL(av.dictionary.__file__).av_max_alloc(ctypes.c_size_t(_BLOCK))


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; FFmpeg says so too at its limit, and then the file is to blame."""
    if not isinstance(error, MemoryError):
        return False
    try:
        bytearray(_BLOCK)
    except MemoryError:
        return True
    return False


def _mixed(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """One channel of `sound` (float32 [1 or 2, n]): the mean.

    Where the two cancel each other (one of them has its wires swapped), the mean would be silent: then the first alone.
    """
    first: NDArray[np.float32] = sound[0]
    if len(sound) == 1:
        return first
    mean: NDArray[np.float32] = (first + sound[1]) / 2
    cancelled = np.vdot(mean, mean) < _CANCELLED * np.vdot(sound, sound) / 2
    return first if cancelled else mean


def _sound(path: Path, seconds: float) -> Iterator[NDArray[np.float32]]:
    """The sound of a file measured to have `seconds`: float32 [n], 16 kHz, mono, of any n."""
    done = 0
    mono: _Mono | None = None
    with _opened(path) as (container, stream):
        for place, frame in _Reading(seconds).frames(container, stream):
            if place is not None:
                # A resampler's length differs by some samples from the frames'. Places decide, so that all is as long
                # as measured.
                for sound in mono.sound(None) if mono else ():
                    yield sound[: place - done]
                    done = min(done + sound.size, place)
                while done < place:
                    silence = np.zeros(min(place - done, PIECE), np.float32)
                    yield silence
                    done += silence.size
                mono = _Mono(frame) if frame else None
            if mono and frame:
                for sound in mono.sound(frame):
                    yield sound
                    done += sound.size


def _promised(path: Path, container: "InputContainer", stream: "AudioStream") -> float | None:
    """The second at which the sound ends by the header; None if that promises nothing."""
    if container.format.name == "wav":
        return _promised_by_wav(path)
    if container.format.name not in _COUNTED:
        return None
    if stream.duration and stream.time_base:
        # MP4 counts from where the stream begins, flac and ogg from 0.
        start = stream.start_time if container.format.name.startswith("mov") else None
        return float(((start or 0) + stream.duration) * stream.time_base) - _origin(container)
    # The header of Matroska has the end of the longest stream; some writers tag each stream with its own.
    if tag := re.fullmatch(r"(\d\d):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - _origin(container)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base - _origin(container)
    return None


def _promised_by_wav(path: Path) -> float | None:
    per_second = 0
    with path.open("rb") as file:
        file.seek(12)  # "RIFF", size, "WAVE"
        for _ in range(_CHUNKS):
            if len(head := file.read(24)) < 24:
                break
            name, size, tag, _, rate, _, block = struct.unpack_from("<4sIHHIIH", head)
            if name == b"data":
                return size / per_second if per_second and size < _UNKNOWN_WAV_BYTES else None
            if name == b"fmt " and tag in _LINEAR:
                per_second = rate * block
            file.seek(size + size % 2 - 16, os.SEEK_CUR)
    return None


def _origin(container: "InputContainer") -> float:
    """The time stamp, in seconds, at which a player shows 0:00: where the first of all streams begins."""
    return (container.start_time or 0) / av.time_base
