"""`toban demo`: real speech from a waiting row to a stored transcript, on a stack that is gone afterwards."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import app
from app.cli.console import console
from app.cli.follow import Item, Verdict, follow, verdicts
from app.cli.hints import here
from app.cli.up import stop_like_ctrl_c
from app.embedded import Stack
from app.embedded.environment import PLACES, own_values
from app.intake import put_files, put_rows
from app.recordings import Recording, find, timed
from beat_schedule import timetable

SHIPPED = Path(app.__file__).parent / "demo" / "recordings"
OWN_DEVICE = "recorder"


# Columns that the whole summary takes.
WIDE = 100


def demo(audio: Path | None) -> None:
    screen = console()
    stop_like_ctrl_c()
    if audio is not None:
        find(audio)  # before anything is started
    data = Path(tempfile.mkdtemp(prefix="toban-demo-"))
    try:
        own = {name: value for name, value in own_values().items() if name not in PLACES}
        own.setdefault("AUDIO_MISSING_GRACE", "1")  # no upload is under way
        own.setdefault("TOBAN_HEARTBEAT", "1")  # it carries the progress, which somebody is watching
        with Stack(data, own, say=lambda step: screen.print(f"{escape(step)} …")) as stack:
            for stand_in in stack.stand_ins:
                screen.print(f"  [dim]{stand_in.setting}: local stand-in, {escape(stand_in.what)}[/]")
            items = _run(screen, stack, audio)
            screen.print("Stopping everything …")
        if failed := [item for item in items if item.state == "failed"]:
            screen.print(f"[bold red]{len(failed)} of {len(items)} recordings failed[/]; the reasons stand above.")
            raise typer.Exit(1)
        keep = escape(here("`toban up` keeps the same running, with its data in .toban/."))
        screen.print(f"[bold green]Done.[/] {keep}", soft_wrap=True)
    except KeyboardInterrupt:
        screen.print("\nStopped; nothing is left running.")
        raise typer.Exit(130) from None
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _run(screen: Console, stack: Stack, audio: Path | None) -> Sequence[Item]:
    zone = stack.settings.audio.zone
    recordings = _shipped() if audio is None else timed(find(audio), OWN_DEVICE, zone)
    with stack.database() as database:
        database.call("toban_sync_jobs", jobs=[job.row() for job in timetable().values()])
        database.call("toban_edit_job", job="timeblock-prompt", enabled=True)
    put_files(stack.settings.audio, recordings)
    put_rows(stack.settings.database, zone, recordings)
    devices = len({recording.device_id for recording in recordings})
    screen.print(
        f"\n{len(recordings)} rows of {devices} device{'s' if devices > 1 else ''} wait in [bold]audio_files[/]. "
        "Beat ticks, the dispatcher claims them, the whisper queue hears them:\n"
    )
    names = {
        (recording.device_id, recording.recorded_at): recording.file.name if recording.file else "(no file)"
        for recording in recordings
    }
    items = follow(screen, stack, names)
    _print_transcripts(screen, items)
    _print_summary(screen, items)
    screen.print("\nEach time block's words become a prompt in [bold]dashboard[/], and the gpt queue answers it …\n")
    _print_verdicts(screen, verdicts(stack))
    return items


def _shipped() -> list[Recording]:
    entries = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    return [
        Recording(
            SHIPPED / entry["file"] if entry["file"] else None,
            entry["device_id"],
            datetime.fromisoformat(entry["recorded_at"]),
        )
        for entry in entries
    ]


def _print_transcripts(screen: Console, items: Sequence[Item]) -> None:
    screen.print("\n[bold]Transcripts[/]")
    for item in items:
        if item.state == "completed":
            screen.print(f"  [dim]{item.label}[/]  {escape(item.text or '(nobody speaks)')}")


def _print_summary(screen: Console, items: Sequence[Item]) -> None:
    table = Table(title="Recordings", title_justify="left", title_style="bold")
    numbers = {"audio", "× real time", "words"}
    # What a terminal of 80 columns has no room for; the transcripts above say more.
    left_out = set() if screen.width >= WIDE else {"audio", "words"}
    shown = ("device", "time block", "recording", "state", "audio", "× real time", "words", "remark")
    for name in shown:
        if name not in left_out:
            table.add_column(
                name,
                justify="right" if name in numbers else "left",
                no_wrap=name not in {"recording", "remark"},
                min_width=10 if name in {"recording", "remark"} else None,
                overflow="fold",
            )
    for item in items:
        done = item.state == "completed"
        cells = (
            item.device[:8],
            item.block,
            escape(item.name),
            {"completed": "[green]completed[/]", "failed": "[red]failed[/]"}.get(item.state, item.state),
            f"{item.seconds:.1f} s" if item.seconds else "",
            f"{1 / item.factor:.1f}" if item.factor else "",
            str(len(item.text.split())) if done else "",
            escape(item.error or ""),
        )
        table.add_row(*(cell for name, cell in zip(shown, cells, strict=True) if name not in left_out))
    screen.print()
    screen.print(table)


def _print_verdicts(screen: Console, found: Sequence[Verdict]) -> None:
    """`dashboard`, what the app reads: a score for each time block."""
    if not found:
        screen.print("Nobody spoke, so there is nothing to judge.")
        return
    by = ", ".join(sorted({verdict.model for verdict in found if verdict.model}))
    table = Table(title=f"Time blocks, judged by {escape(by)}" if by else "Time blocks", title_justify="left")
    table.title_style = "bold"
    for name in ("device", "date", "time block", "score", "summary"):
        table.add_column(
            name, justify="right" if name == "score" else "left", no_wrap=name != "summary", overflow="fold"
        )
    for verdict in found:
        if verdict.score is None:
            score, words = f"[red]{verdict.state}[/]", verdict.error or ""
        else:
            colour = "green" if verdict.score > 0 else "red" if verdict.score < 0 else "dim"
            score, words = f"[{colour}]{verdict.score:+.0f}[/]", verdict.summary or ""
        table.add_row(verdict.device[:8], verdict.date, verdict.block, score, escape(words))
    screen.print(table)
