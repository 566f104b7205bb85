"""This machine: Python, traps in its environment, its clock's zone, its room."""

import os
import platform
import shutil
import tempfile
from datetime import datetime

from app.doctor.finding import Finding, Findings
from app.settings import Audio


def machine() -> Findings:
    yield Finding("OK", "D102", f"Python {platform.python_version()} on {platform.machine()}")
    if os.environ.get("REMAP_SIGTERM"):
        yield Finding(
            "WARN",
            "D103",
            "REMAP_SIGTERM is set: SIGTERM then ends running work at once, without the grace",
            "unset it; TOBAN_SHUTDOWN_GRACE says how long running work may take to finish",
        )


def clocks(settings: Audio) -> Findings:
    here, there = datetime.now().astimezone(), datetime.now(settings.zone)
    yield Finding(
        "OK",
        "D104",
        f"dates and time blocks are meant in {settings.device_timezone}, where it is {there:%Y-%m-%d %H:%M} "
        f"(this machine: {here:%Y-%m-%d %H:%M %Z})",
    )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < settings.audio_max_bytes:
        yield Finding(
            "WARN",
            "D105",
            f"{folder} has {free / 1024**2:.0f} MB left, less than a recording may have",
            "make room, set TMPDIR to another disk, or lower AUDIO_MAX_BYTES",
        )
