"""Sound files made on the spot, so that no test needs a program for it."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from app.speech.decode import measure

RATE = 16_000


def tone(seconds: float, rate: int = RATE) -> NDArray[np.int16]:
    """A 440-Hz tone: int16 [n], mono."""
    return (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype("<i2")


def noise(seconds: float, peak: float) -> NDArray[np.int16]:
    """White noise up to `peak` of full scale: int16 [n], mono, 16 kHz."""
    return (np.random.default_rng(7).uniform(-peak, peak, round(seconds * RATE)) * 32767).astype("<i2")


def wav(samples: NDArray[np.int16], rate: int = RATE, *, channels: int = 1, claim: int | None = None) -> bytes:
    """A PCM wav; `claim`: the bytes of sound that its header promises instead of the true number."""
    data = samples.tobytes()
    size = len(data) if claim is None else claim
    # As in a header that overflowed: 2^31 Hz times 2 bytes do not fit either.
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    head = b"RIFF" + struct.pack("<I", (36 + size) & 0xFFFFFFFF) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", size) + data


def encoded(
    path: Path, codec: str, samples: NDArray[np.int16], rate: int = 48_000, *, options: dict[str, str] | None = None
) -> Path:
    """`samples` (int16 [n] or [channels, n], at `rate`) written to `path` by a codec of PyAV.

    The suffix says the container; `options` are the codec's.
    """
    with av.open(str(path), "w") as target:
        target.mux(_packets(target, codec, samples, rate, options or {}))
    return path


def film(
    path: Path,
    picture: str | None,
    codec: str,
    *sounds: NDArray[np.int16],
    pictures: int = 1,
    late: float = 0.0,
    gaps: Sequence[tuple[float, float]] = (),
) -> Path:
    """`pictures` s of a picture stream, then one audio stream for each of `sounds` (int16 [n], mono, 48 kHz).

    Time stamps of the sound begin at `late` s; `gaps`: (second of the sound, seconds by which they jump there).
    """
    with av.open(str(path), "w") as target:
        packets: list[av.Packet[av.VideoStream] | av.Packet[av.AudioStream]] = []
        if picture:
            packets += _pictures(target, picture, pictures)
        for sound in sounds:
            for packet in _packets(target, codec, sound, 48_000, {}):
                assert packet.pts is not None
                second = packet.pts * packet.time_base
                packet.pts += round((late + sum(jump for at, jump in gaps if second >= at)) / packet.time_base)
                packet.dts = packet.pts
                packets.append(packet)
        target.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))
    return path


def picture_only(path: Path) -> Path:
    """An mp4 without sound."""
    with av.open(str(path), "w") as target:
        target.mux(_pictures(target, "mpeg4", 1))
    return path


def whole(path: Path, *, max_seconds: float) -> NDArray[np.float32]:
    """All of the file's sound: float32 [n], 16 kHz, mono."""
    return np.concatenate([*measure(path, max_seconds=max_seconds).samples()])


def _packets(
    target: "av.container.OutputContainer",
    codec: str,
    samples: NDArray[np.int16],
    rate: int,
    options: dict[str, str],
) -> "list[av.Packet[av.AudioStream]]":
    """A new audio stream of `target`, and all its packets."""
    planes = np.atleast_2d(samples)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(planes)]
    stream = target.add_stream(codec, rate=rate, layout=layout, options=options)
    assert isinstance(stream, av.AudioStream)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="s16p", layout=layout)
    frame.sample_rate = rate
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
    packets, position = [], 0
    for piece in filter(None, [*resampler.resample(frame), *resampler.resample(None)]):
        piece.pts, piece.time_base = position, Fraction(1, rate)
        position += piece.samples
        packets += stream.encode(piece)
    return [*packets, *stream.encode(None)]


def _pictures(target: "av.container.OutputContainer", codec: str, seconds: int) -> "list[av.Packet[av.VideoStream]]":
    """A new stream of black pictures, 5 per second, and all its packets."""
    stream = target.add_stream(codec, rate=5)
    assert isinstance(stream, av.VideoStream)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    packets = []
    for _ in range(5 * seconds):
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]
