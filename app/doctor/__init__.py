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
from app.settings import GROUPS, Audio, Broker, Database, Gpt, Group, Ledger, SettingsError, Traces, Whisper, load_group
from app.shadow import named

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
    groups, problems = _settings()
    yield from problems
    if not problems:
        yield Finding("OK", "D101", "every setting can be used")
    yield from machine()
    for group, look in LOOKS:
        if own := groups.get(group):
            yield from look(own)
    if whisper := groups.get(Whisper):
        audio = groups.get(Audio)
        limit = audio.audio_max_seconds if audio else Audio.model_fields["audio_max_seconds"].default
        yield from words(whisper, limit.total_seconds(), speech)


def _settings() -> tuple[dict[type[Group], Any], list[Finding]]:
    """The groups that can be used, and what is wrong with the others."""
    groups: dict[type[Group], Any] = {}
    problems = []
    for group in GROUPS.values():
        try:
            groups[group] = load_group(group)
        except SettingsError as error:
            problems += error.problems
    try:
        named(groups.get(Ledger) or Ledger.model_construct())
    except SettingsError as error:
        problems += error.problems
    return groups, [Finding("FAIL", p.code, f"{p.setting}: {p.message}", p.remedy) for p in problems]


__all__ = ["Finding", "examine"]
