"""The one way commands write: as wide as the terminal, and wide enough for tables where there is none."""

from rich.console import Console


def console() -> Console:
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = max(screen.width, 120)
    return screen
