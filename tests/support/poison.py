"""A source module for TOBAN_SOURCES: recordings that begin with POISON kill the process that decodes them."""

import os
import signal
from pathlib import Path

from app.speech import decode as decoding
from app.speech import faster

_decode = decoding.decode


def decode(path: Path, *, max_seconds: float) -> object:
    """Decode as usual, unless the file is poison."""
    if path.read_bytes().startswith(b"POISON"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _decode(path, max_seconds=max_seconds)


setattr(faster, "decode", decode)  # noqa: B010 - the engine's own name for it
