"""What `toban tune` measured on this machine: the fastest children, threads and chunks for the settings' model."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from app.settings import Whisper


def tuned(settings: Whisper, cores: int) -> Mapping[str, int] | None:
    """`children`, `threads`, `batch` for these settings on this machine; None: not measured."""
    try:
        known = json.loads(_file().read_text("utf-8"))
        best = known[_key(settings, cores)]
        return {name: int(best[name]) for name in ("children", "threads", "batch")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(settings: Whisper, cores: int, best: Mapping[str, float]) -> Path:
    """Keep what was measured; returns the file."""
    file = _file()
    try:
        known = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    known[_key(settings, cores)] = dict(best)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    new.replace(file)
    return file


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toban" / "tuned.json"


def _key(settings: Whisper, cores: int) -> str:
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    engine = f"{settings.engine} {version(settings.engine)}"
    return f"{engine}, {settings.model}, {settings.compute_type}, beams {settings.beam_size}, {cores} × {processor}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
