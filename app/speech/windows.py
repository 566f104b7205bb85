"""Cutting a long recording into windows, so that memory does not grow with its length."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of everything an engine hears."""

# 30 minutes of speech, tiny.en int8, 2 threads: in one piece 1,970 MB at the peak; windows of 120 s 528 MB, of 60 s
# 505 MB; time (76 s) and word error rate (0.078) are the same.
WINDOW = 120.0

_SLACK = 15.0  # seconds on each side in which a better place to cut is looked for
_STEP = RATE // 10


def windows(samples: NDArray[np.float32], seconds: float = WINDOW) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive windows of about `seconds` s, in samples, cut where it is quietest.

    `samples`: float32 [n], 16 kHz, mono. The last window has whatever is left.
    """
    length, slack = int(seconds * RATE), int(min(_SLACK, seconds / 4) * RATE)
    start = 0
    while samples.size - start > length + slack:
        first = start + length - slack
        steps = samples[first : first + 2 * slack // _STEP * _STEP].reshape(-1, _STEP)
        # Mean power over 0.4 s: a pause between sentences, not the closure of a consonant.
        power = np.convolve(np.square(steps).mean(axis=1), np.ones(4), mode="valid")
        end = first + (int(power.argmin()) + 2) * _STEP
        yield start, end
        start = end
    if start < samples.size:
        yield start, samples.size
