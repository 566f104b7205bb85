"""`toban up`: the embedded stack, until Ctrl-C."""

import signal
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from app.cli.console import console
from app.cli.hints import here
from app.cli.web import told
from app.embedded import Stack

USE = (
    ("toban add FOLDER --device ID", "put recordings in"),
    ("toban status --watch", "see them go"),
    ("toban doctor", "check everything"),
    ("FLOWER_BASIC_AUTH=NAME:PASSWORD celery -A app flower", "the Celery dashboard, at http://localhost:5555"),
)


def up(data: Path) -> None:
    screen = console()
    stop_like_ctrl_c()
    stack = Stack(data, web=True, say=lambda step: screen.print(f"{escape(step)} …"))
    try:
        stack.start()
        try:
            stack.wait_ready()
            _tell(screen, stack)
            _watch(screen, stack)
        finally:
            screen.print("\nStopping; running work may finish first. Ctrl-C again stops it at once.")
            stack.stop()
            screen.print(f"Everything has stopped. The data stays in {escape(str(stack.data))}.")
    except KeyboardInterrupt:
        return


def stop_like_ctrl_c() -> None:
    """A service manager's SIGTERM and a closed terminal's SIGHUP stop everything in good order too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)


def _tell(screen: Console, stack: Stack) -> None:
    screen.print("\n[bold green]Toban runs.[/]")
    for stand_in in stack.stand_ins:
        screen.print(f"  {stand_in.setting} is not set; the local stand-in is used: {escape(stand_in.what)}")
    _tell_pages(screen, stack)
    screen.print(f"  Logs are in {escape(str(stack.data / 'logs'))}")
    screen.print("\nIn another terminal, in this folder:")
    commands = [here(f"`{command}`").strip("`") for command, _ in USE]
    width = max(map(len, commands))
    for command, (_, purpose) in zip(commands, USE, strict=True):
        screen.print(f"  [bold]{escape(command.ljust(width))}[/]  {purpose}", soft_wrap=True)
    screen.print("\nCtrl-C stops everything.")


def _tell_pages(screen: Console, stack: Stack) -> None:
    from app.web.accounts import Accounts
    from app.web.server import address, first_link

    settings = stack.settings.web
    base = address(settings, settings.web_port)
    screen.print(f"  [bold]The pages are at {escape(base)}[/]", soft_wrap=True)
    with stack.database() as database:
        link = first_link(Accounts(database, settings), base)
    if link:
        screen.print(f"  {escape(told(link))}", soft_wrap=True)


def _watch(screen: Console, stack: Stack) -> None:
    """Until somebody stops us; say when a program has died for good.

    Raises `StackError` when the supervisor itself has.
    """
    dead: set[str] = set()
    while True:
        fatal = {name for name, state in stack.states().items() if state.state == "FATAL"}
        for name in sorted(fatal - dead):
            screen.print(f"[bold red]{name} has died too often and stays down[/]; {escape(stack.tail(name))}")
        dead = fatal
        time.sleep(2)
