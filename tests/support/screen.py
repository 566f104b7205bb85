"""What a terminal shows."""

from io import StringIO

from rich.console import Console, RenderableType


def printed(what: RenderableType, width: int = 160) -> str:
    """`what` as text, on so many columns."""
    console = Console(width=width, record=True, file=StringIO(), highlight=False)
    console.print(what)
    return console.export_text()
