"""Sound files made on the spot, so that no test needs a program for it."""

import struct
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

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
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    head = b"RIFF" + struct.pack("<I", (36 + size) & 0xFFFFFFFF) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", size) + data


def encoded(path: Path, codec: str, samples: NDArray[np.int16], rate: int = 48_000) -> Path:
    """`samples` (int16 [n], mono, at `rate`) written to `path` by a codec of PyAV; the suffix says the container."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            if piece is not None:
                piece.pts = None
                target.mux(stream.encode(piece))
        target.mux(stream.encode(None))
    return path


def picture_only(path: Path) -> Path:
    """An mp4 without sound."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path
