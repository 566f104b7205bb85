"""Reading any sound file as the samples that a speech engine hears.

Decoding has its own loop, because the file is a stranger's: its length is measured instead of believed, damaged parts
are stepped over, and only sound containers are opened (playlist formats may name other files and addresses).
"""

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from app.errors import Permanent
from app.speech.windows import RATE

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

SHORTEST = 0.1  # seconds; no word is shorter

_CONTAINERS = "wav,w64,aiff,au,caf,flac,ogg,mp3,aac,amr,mov,matroska,asf"
# Containers whose header counts samples. The length of bare mp3 or aac is a guess from the bit rate (56.2 s for a file
# of 59.9 s), and a guess is no promise. The wav reader of FFmpeg caps the length at the file's size, so `_promised`
# asks the header itself.
_COUNTED = {"flac", "ogg", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
# Else two equal channels come out 1.41 times as loud, and are clipped: FFmpeg evens that out for whole numbers only.
_MIX = {"rematrix_maxval": "1.0"}
_UNKNOWN_WAV_BYTES = 0x7FFF_0000  # recorders that can't seek back leave 0x7FFF…, 0x8000_0000 or 0xFFFF_FFFF


@dataclass(frozen=True)
class Decoded:
    """`samples`: float32 [n], 16 kHz, mono, within -1 … 1; `note`: what a person should know about the file."""

    samples: NDArray[np.float32]
    note: str | None

    @property
    def seconds(self) -> float:
        return self.samples.size / RATE


def decode(path: Path, *, max_seconds: float) -> Decoded:
    """The sound of the file `path`; of several audio streams the first.

    At most `max_seconds` (plus one frame) are decoded, whatever the header says. What is damaged is left out, and what
    a truncated file lacks is missing; `note` tells. Raises `Permanent` with the reason when there is nothing to hear:
    an empty file, not sound, no audio stream, no or too few samples, too long. Messages don't name the path.
    """
    if path.stat().st_size == 0:
        raise Permanent("the file is empty (0 bytes); record or upload it again")
    reading = _Reading(max_seconds)
    try:
        # "file:" keeps a colon in the path from being read as a protocol.
        with av.open(f"file:{path}", metadata_errors="ignore", options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.audio:
                raise Permanent("the file has no audio stream")
            stream = container.streams.audio[0]
            samples = reading.samples(container, stream)
            promised = _promised(path, container, stream)
    except MemoryError:  # one of PyAV's errors is this too, and it is no fault of the file's
        raise
    except av.FFmpegError as error:
        raise Permanent(f"not an audio file PyAV can read ({error.strerror})") from None
    if not samples.size and reading.damaged:
        raise Permanent(f"not an audio file PyAV can read: all of its {reading.damaged} packets are damaged")
    if reading.seconds == 0:
        raise Permanent("the file holds no audio (0 samples)")
    if min(reading.seconds, samples.size / RATE) < SHORTEST:
        raise Permanent(f"too short to hold speech: {reading.seconds:.5f}".rstrip("0").rstrip(".") + " s")
    return Decoded(samples, reading.note(promised))


class _Reading:
    """One pass over one file: counts what went by."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self.seconds = 0.0  # decoded so far
        self.position = 0.0  # where the last frame ended, by its time stamp
        self.damaged = 0  # packets that could not be decoded

    def samples(self, container: "InputContainer", stream: "AudioStream") -> NDArray[np.float32]:
        sound = bytearray()  # grows in place; joining a list of arrays would need the memory twice
        for frame in self._resampled(self._frames(container, stream)):
            sound += np.ascontiguousarray(frame.to_ndarray(), dtype=np.float32).data.cast("B")
        samples = np.frombuffer(sound, dtype=np.float32)
        np.nan_to_num(samples, copy=False)  # float files may hold anything
        return np.clip(samples, -1.0, 1.0, out=samples)

    def _frames(self, container: "InputContainer", stream: "AudioStream") -> Iterator[AudioFrame]:
        for packet in self._packets(container, stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError:  # whichever: damaged aac is "invalid data", "not permitted", "not implemented" …
                self.damaged += 1
                continue
            for frame in frames:
                length = frame.samples / frame.sample_rate
                self.seconds += length
                self.position = max(self.position + length, (frame.time or 0.0) + length)
                if self.seconds > self.max_seconds:
                    raise Permanent(
                        f"longer than the limit of {self.max_seconds:g} s; split it, or raise AUDIO_MAX_SECONDS"
                    )
                yield frame

    def _resampled(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Frames of 32-bit floats, 16 kHz, mono.

        The format may change within a file (recordings joined end to end, a damaged header); PyAV's resampler refuses
        that, so each stretch gets its own. Fed with None it hands over what it still holds, or that None.
        """
        resampler, form = None, None
        for frame in frames:
            frame.pts = None  # gaps are left out, not filled with silence
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or now != form:
                if resampler:
                    yield from filter(None, resampler.resample(None))
                resampler, form = AudioResampler(format="flt", layout="mono", rate=RATE, options=_MIX), now
            try:
                converted = resampler.resample(frame)
            except MemoryError:
                raise
            except av.FFmpegError:  # no way to mono from 99 channels, say
                self.damaged += 1
                resampler = None
            else:
                yield from converted
        if resampler:
            yield from filter(None, resampler.resample(None))

    def _packets(self, container: "InputContainer", stream: "AudioStream") -> "Iterator[Packet[AudioStream]]":
        try:
            yield from container.demux(stream)
        except MemoryError:
            raise
        except av.FFmpegError:  # the container itself breaks off; what came before is still good
            self.damaged += 1

    def note(self, promised: float | None) -> str | None:
        missing = (promised or 0.0) - self.seconds
        if promised and missing > max(1.0, 0.02 * promised):
            if promised - self.position > missing / 2:  # it ends early; else the gap is inside
                return (
                    f"truncated: the header promises {promised:.1f} s, the file holds {self.seconds:.1f} s; "
                    "transcribed what is there"
                )
            return f"damaged: {missing:.1f} s of {promised:.1f} s could not be decoded and were left out"
        if self.damaged:
            return f"damaged: {self.damaged} packets could not be decoded and were left out"
        return None


def _promised(path: Path, container: "InputContainer", stream: "AudioStream") -> float | None:
    """Seconds that the header promises; None if it promises nothing."""
    if container.format.name == "wav":
        try:
            with wave.open(str(path)) as header:
                if header.getnframes() * header.getsampwidth() * header.getnchannels() >= _UNKNOWN_WAV_BYTES:
                    return None
                return float(header.getnframes() / header.getframerate())
        except (wave.Error, EOFError, ZeroDivisionError):  # not PCM, say
            return None
    if container.format.name not in _COUNTED:
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / float(av.time_base) if container.duration else None
