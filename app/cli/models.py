"""`toban models`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from app.cli.console import Grid, console
from app.cli.hints import here
from app.errors import NotReady
from app.settings import Whisper, load_group
from app.speech.models import Model, Models
from app.speech.models.model import Progress as Report
from app.speech.models.places import root, text


def list_models(*, as_json: bool) -> None:
    settings = load_group(Whisper)
    models = Models(settings)
    found = models.all()
    named, missing = _named(settings, models)
    if as_json:
        rows = [asdict(model) | {"path": str(model.path), "named": model.path in named.values()} for model in found]
        typer.echo(
            json.dumps(
                {"folder": str(root(settings)), "engine": settings.engine, "models": rows, "missing": missing},
                ensure_ascii=False,
            )
        )
        return
    table = Grid("", "name", "engine", "size", "origin", "path", keys=2, right={"size"}, texts={"path"})
    for model in found:
        mark = "*" if model.path in named.values() else ""
        table.add_row(mark, escape(model.name), model.engine, text(model.bytes), model.origin, escape(str(model.path)))
    screen = console()
    if not screen.is_terminal:
        screen.width = 1000  # a path is for copying: it stays on its line
    screen.print(table if found else "No models are here yet.", soft_wrap=not found)
    for name, why in missing.items():
        screen.print(f"[yellow]{escape(name)}[/] ({settings.engine}): {escape(why)}", soft_wrap=True)
    if named:
        screen.print("[dim]* named by WHISPER_MODEL or WHISPER_EXTRA_MODELS[/]")


def pull(names: Sequence[str], engine: str | None) -> None:
    settings = _settings(engine)
    models = Models(settings)
    screen = console()
    for name in names or settings.models:
        with _progress(name, screen) as report:
            model = models.pull(name, report)
        screen.print(f"{escape(name)}: {text(model.bytes)}, {escape(str(model.path))}", soft_wrap=True)


def verify(names: Sequence[str], engine: str | None) -> None:
    models = Models(_settings(engine))
    checks = (
        ((name, models.verify(name)) for name in names)
        if names
        else ((f"{model.name} ({model.engine})", models.damage(model)) for model in models.all())
    )
    screen, damaged = console(), False
    for what, problems in checks:
        damaged |= bool(problems)
        told = escape(f"{what}: {'; '.join(problems)}" if problems else what)
        screen.print(f"[bold red]damaged[/] {told}" if problems else f"[green]whole[/]   {told}", soft_wrap=True)
    if damaged:
        screen.print(escape(here("`toban models pull NAME` downloads a damaged model again.")), soft_wrap=True)
        raise typer.Exit(1)


def remove(name: str, engine: str | None) -> None:
    typer.echo(f"{name}: {text(Models(_settings(engine)).remove(name))} freed")


def _settings(engine: str | None) -> Whisper:
    settings = load_group(Whisper)
    return settings.model_copy(update={"engine": engine}) if engine else settings


def _named(settings: Whisper, models: Models) -> tuple[dict[str, object], dict[str, str]]:
    """Of the models that the settings name: the paths of those that are here, and what to do about the others."""
    here: dict[str, object] = {}
    missing: dict[str, str] = {}
    for name in settings.models:
        try:
            found: Model | None = models.find(name)
        except NotReady as error:
            missing[name] = str(error)
            continue
        if found:
            here[name] = found.path
        else:
            missing[name] = f"not here yet: toban models pull {name}"
    return here, missing


@contextmanager
def _progress(name: str, screen: Console) -> Iterator[Report]:
    """Shows a download: a bar on a terminal, else one line when it starts."""
    if not screen.is_terminal:
        told = False

        def tell(done: int, total: int) -> None:
            nonlocal told
            if not told:
                size = f" {text(total)}" if total else ""
                resumed = f", {text(done)} of them already here" if done else ""
                screen.print(f"{escape(name)}: downloading{size}{resumed} …", soft_wrap=True)
            told = True

        yield tell
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bar:
        # Without a total it only moves to and fro: nothing is known yet, or another process is downloading.
        task = bar.add_task(escape(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
