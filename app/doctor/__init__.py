"""What `toban doctor` looks at: settings, machine, database, broker, workers, recordings, speech, analysis, traps.

Each check yields findings with a stable code (docs/doctor.md) and, where something is wrong, the remedy. No check stops
another, and none changes anything.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.doctor.analysis import verdicts
from app.doctor.broker import wakeups
from app.doctor.finding import Finding, Findings
from app.doctor.ledger import rows
from app.doctor.machine import clocks, machine
from app.doctor.speech import recordings, words
from app.doctor.traces import steps
from app.settings import GROUPS, Audio, Broker, Database, Gpt, Group, SettingsError, Traces, Whisper, load_group

LOOKS: tuple[tuple[type[Group], Callable[[Any], Findings]], ...] = (
    (Audio, clocks),
    (Database, rows),
    (Broker, wakeups),
    (Audio, recordings),
    (Gpt, verdicts),
    (Traces, steps),
)


def examine(speech: Path | None = None) -> Findings:
    """Everything; `speech`: a recording to transcribe too."""
    groups: dict[type[Group], Any] = {}
    for group in GROUPS.values():
        try:
            groups[group] = load_group(group)
        except SettingsError as error:
            yield from (Finding("FAIL", p.code, f"{p.setting}: {p.message}", p.remedy) for p in error.problems)
    if len(groups) == len(GROUPS):
        yield Finding("OK", "D101", "every setting can be used")
    yield from machine()
    for group, look in LOOKS:
        if own := groups.get(group):
            yield from look(own)
    if whisper := groups.get(Whisper):
        audio = groups.get(Audio)
        limit = audio.audio_max_seconds if audio else Audio.model_fields["audio_max_seconds"].default
        yield from words(whisper, limit.total_seconds(), speech)


__all__ = ["Finding", "examine"]
