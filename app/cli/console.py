"""The one way commands write: as wide as the terminal, and wide enough for tables where there is none."""

import re
from collections.abc import Collection, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Columns of a terminal between two of a table.
GAP = 2
# As many a sentence needs at least, to be read.
SENTENCE = 24


def console() -> Console:
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = max(screen.width, 120)
    return screen


class Grid:
    """A table in which no word is cut: where it has no room, its rows become lines.

    Cells are markup. `texts`: the columns of sentences, which go on in further lines; `keys`: how many columns say what
    a row is about; `right`: the columns of numbers; `turns`: without room it is turned round, for rows that are few.
    """

    def __init__(
        self,
        *columns: str,
        title: str = "",
        texts: Collection[str] = (),
        keys: int = 1,
        right: Collection[str] = (),
        turns: bool = False,
    ) -> None:
        self._columns = columns
        self._title = title
        self._texts = texts
        self._keys = keys
        self._right = right
        self._turns = turns
        self._rows: list[tuple[Sequence[str], str]] = []

    def add_row(self, *cells: str, style: str = "") -> None:
        self._rows.append((cells, style))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._title:
            yield Text(self._title, style="bold")
        room = options.max_width
        if widths := self._widths(room, self._columns) or self._widths(
            room, [_longest(name) for name in self._columns]
        ):
            yield self._table(widths)
        elif self._turns:
            yield self._turned()
        else:
            yield from self._lines()

    def _widths(self, room: int, heads: Sequence[str]) -> list[int] | None:
        """Of each column, which has to hold its head on one line; None: there is no room."""
        wanted, least = [], []
        for place, head in enumerate(heads):
            cells = [Text.from_markup(row[place]) for row, _ in self._rows]
            wanted.append(max([1, len(head), *(cell.cell_len for cell in cells)]))
            words = [len(_longest(cell.plain)) for cell in cells]
            is_text = self._columns[place] in self._texts
            least.append(max([len(head), min(wanted[-1], SENTENCE), *words]) if is_text else wanted[-1])
        room -= GAP * (len(wanted) - 1) + sum(least)
        if room < 0:
            return None
        # What is left is for the sentences; short ones take what they want, the others share the rest.
        texts = sorted((place for place, name in enumerate(self._columns) if name in self._texts),
                       key=lambda place: wanted[place] - least[place])  # fmt: skip
        for others, place in zip(range(len(texts), 0, -1), texts, strict=True):
            more = min(wanted[place] - least[place], room // others)
            least[place] += more
            room -= more
        return least

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for name, width in zip(self._columns, widths, strict=True):
            table.add_column(name, header_style="dim", overflow="fold", width=width)
            if name in self._right:
                table.columns[-1].justify = "right"
        for cells, style in self._rows:
            table.add_row(*cells, style=style)
        return table

    def _turned(self) -> "Grid":
        turned = Grid(self._columns[0], *(cells[0] for cells, _ in self._rows))
        for place, name in enumerate(self._columns[1:], 1):
            turned.add_row(f"[dim]{name}[/]", *(cells[place] for cells, _ in self._rows))
        return turned

    def _lines(self) -> Iterator[RenderableType]:
        for cells, style in self._rows:
            named = [*zip(self._columns, cells, strict=True)][self._keys :]
            yield Text.from_markup("  ".join(cells[: self._keys]), style=style, overflow="fold")
            facts = [f"[dim]{name}[/] {cell}" for name, cell in named if cell and name not in self._texts]
            texts = [cell if len(self._texts) == 1 else f"[dim]{name}[/] {cell}"
                     for name, cell in named if cell and name in self._texts]  # fmt: skip
            for line in (", ".join(facts), *texts):
                if line:
                    yield Padding(Text.from_markup(line, style=style, overflow="fold"), (0, 0, 0, GAP), expand=False)


def _longest(text: str) -> str:
    """Its longest word that must not be cut; Japanese may be, anywhere."""
    return max(re.findall(r"[!-~]+", text), key=len, default="")
