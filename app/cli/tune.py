"""`toban tune`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

from app.cli.console import Grid, console
from app.cli.hints import here
from app.settings import Whisper, load_group
from app.speech.memory import cores
from app.speech.trial import Candidate, Sample, sample, shipped, start_of
from app.speech.tune import MOST, Result, Tuner, override, repeated
from app.speech.tuned import remember, tuned

# A type that is faster by less is not worth a word.
_FASTER = 1.05
_HEADS = ("children", "threads", "chunks", "audio s per s", "runs", "memory", "")


def tune(file: Path | None, *, as_json: bool) -> None:
    settings = load_group(Whisper)
    screen = console()
    screen.quiet = as_json
    set_by_hand = override(settings)
    own = start_of(file, MOST) if file else None
    with _shown(screen) as results:
        tuner = Tuner(settings, cores(), results.tell)
        results.all = tuner.results
        screen.print(
            f"{escape(settings.model)} on {settings.engine} ({settings.compute_type}), {cores()} cores, at most "
            f"{tuner.limit.bytes >> 20} MB ({tuner.limit.origin})"
        )
        if set_by_hand:
            screen.print(f"[yellow]{', '.join(set_by_hand)} is set, and wins over what is found here.[/]")
        seconds = tuner.sample_seconds()
        heard = (repeated(shipped(), seconds), "en") if own is None else (own, settings.language)
        with sample(heard[0], seconds, heard[1]) as sound:
            screen.print(f"Each child hears {_told(file, sound)}\n")
            best = tuner.best(sound)
            results.over()
            stored = remember(settings, cores(), _stored(best))
            others = tuner.compute_types(best.candidate, sound)
    if as_json:
        typer.echo(json.dumps({
            "engine": settings.engine, "model": settings.model, "compute_type": settings.compute_type, "cores": cores(),
            "limit_bytes": tuner.limit.bytes, "set_by_hand": set_by_hand, "stored": str(stored),
            "choice": _row(best), "measured": [_row(result) for result in tuner.results],
            "compute_types": {settings.compute_type: best.speed, **others},
        }))  # fmt: skip
        return
    screen.print(f"\n[green]{best.candidate}[/]: {best.speed:.1f} s of audio a second", highlight=False)
    if set_by_hand:
        screen.print(f"Take {', '.join(set_by_hand)} out of the settings, and workers use it from their next start.")
    else:
        screen.print(
            escape(here("Workers use it from their next start. `toban tune --forget` takes it back.")), soft_wrap=True
        )
    if others:
        screen.print(_advice(settings.compute_type, best.speed, others))


def forget() -> None:
    settings = load_group(Whisper)
    if tuned(settings, cores()) is None:
        typer.echo(f"Nothing was found before for {settings.model} on this machine.")
        return
    remember(settings, cores(), {})  # an entry without figures is none
    typer.echo(f"What was found for {settings.model} on this machine is forgotten.")


class _Results:
    """What has been measured, on the screen."""

    def __init__(self, screen: Console, live: Live | None) -> None:
        self.all: Sequence[Result] = ()
        self._screen = screen
        self._live = live

    def tell(self, result: Result) -> None:
        if self._live:
            self._live.update(Group(_table(self.all), Spinner("dots", "measuring …")))
            return
        speed = result.failed or f"{result.speeds[-1]:.1f} s of audio a second, {result.peak >> 20} MB"
        self._screen.print(f"  {result.candidate}: {speed}")

    def over(self) -> None:
        if self._live:
            self._live.update(_table(self.all))
        else:
            self._screen.print()
            self._screen.print(_table(self.all))


@contextmanager
def _shown(screen: Console) -> Iterator[_Results]:
    if not screen.is_terminal or screen.quiet:
        yield _Results(screen, None)
        return
    with Live(Spinner("dots", "measuring …"), console=screen) as live:
        results = _Results(screen, live)
        try:
            yield results
        finally:
            results.over()  # without the spinner, however it ended


def _table(results: Sequence[Result]) -> Grid:
    table = Grid(*_HEADS, right=_HEADS[:-1], texts=_HEADS[-1:])
    best = max(results, key=lambda one: one.speed, default=None)
    for one in results:
        speed = f"{one.speed:.1f}" if one.speed else ""
        pace = one.candidate.pace
        table.add_row(
            str(one.candidate.children), str(pace.threads), str(pace.batch),
            f"[green]{speed}[/]" if one is best else speed,
            str(len(one.speeds)), f"{one.peak >> 20} MB", escape(one.failed or ""),
        )  # fmt: skip
    return table


def _told(file: Path | None, sound: Sample) -> str:
    length = f"{sound.seconds:.0f} s of" if sound.seconds < 120 else f"{sound.seconds / 60:.1f} minutes of"
    times = f", {sound.times} times" if sound.times > 1 else ""
    return f"{length} {escape(str(file)) if file else 'speech that comes along'}{times}."


def _advice(kind: str, speed: float, others: dict[str, float]) -> str:
    best = max(others, key=lambda other: others[other])
    told = ", ".join(f"{other} {found:.1f}" for other, found in others.items())
    if others[best] > speed * _FASTER:
        return f"WHISPER_COMPUTE_TYPE={best} is faster here than {kind} ({speed:.1f}): {told}. It is yours to change."
    return f"WHISPER_COMPUTE_TYPE={kind} is right: it hears {speed:.1f}, {told}."


def _stored(best: Result) -> dict[str, float]:
    return {**_cut(best.candidate), "speed": round(best.speed, 1)}


def _cut(candidate: Candidate) -> dict[str, int]:
    return {"children": candidate.children, "threads": candidate.pace.threads, "batch": candidate.pace.batch}


def _row(result: Result) -> dict[str, Any]:
    return {
        **_cut(result.candidate),
        "speed": round(result.speed, 2),
        "speeds": [round(speed, 2) for speed in result.speeds],
        "peak_bytes": result.peak,
        "failed": result.failed,
    }
