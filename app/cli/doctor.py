"""`toban doctor`."""

from collections import Counter
from pathlib import Path

import typer
from rich.markup import escape

from app.cli.console import console
from app.cli.errors import without_passwords
from app.cli.hints import here
from app.doctor import examine

STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def doctor(speech: Path | None) -> None:
    screen = console()
    counts: Counter[str] = Counter()
    for finding in examine(speech):
        counts[finding.level] += 1
        style = STYLES[finding.level]
        screen.print(
            f"[{style}]{finding.level:4}[/] [dim]{finding.code}[/] {escape(without_passwords(here(finding.what)))}",
            soft_wrap=True,
        )
        if finding.remedy:
            screen.print(f"          → {escape(here(finding.remedy))}", soft_wrap=True)
    screen.print(f"\n{counts['OK']} fine, {counts['WARN']} to look at, {counts['FAIL']} broken")
    if counts["FAIL"]:
        raise typer.Exit(1)
