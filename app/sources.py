"""The registry of sources: each kind of waiting row, and what to do for one of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.compare import Compared
    from app.ledger import Claimed
    from app.services import Services
    from app.settings import Ledger, Settings
    from app.work import Work

Result = Mapping[str, Any]

SHADOW = "shadow_"
"""Before a source's name: the source of what others have completed for it (`app/shadow.py`)."""


@dataclass(frozen=True)
class Source:
    """A kind of waiting row. Defined in one file of `tasks/`, watched by one `toban_watch` line of a migration.

    `name`: its name in the ledger and its Celery task, `tasks.{name}`.
    `queue`: the Celery queue of its work.
    `title`: what people read.
    `run`: the work for one row; returns the result that the source's store function takes, or
    `{"row": {column: value}}` for columns of the row itself. It raises the errors of `app/errors.py`.
    `max_run`: how long one attempt may take at most, unless it says otherwise.
    `every`: how often a dispatcher looks for waiting rows, as long as `jobs` says nothing else.
    `missing`: which of some claimed items have nothing to work on, looked up for many at once; by task id.
    `missing_note`: what such an item says.
    `models`: the models that `reprocess` may ask for; None: it asks for none.
    `opened_before`: claims leave what became pending later than this; None: they leave nothing.
    `compare`: what others made of a row, and the result of `run`, side by side, for shadow mode; None: in shadow mode
    nothing of it runs, as where running has effects of its own.
    """

    name: str
    queue: str
    title: str
    run: Callable[["Work"], Result]
    max_run: timedelta = timedelta(minutes=10)
    every: timedelta = timedelta(seconds=10)
    missing: Callable[["Services", Sequence["Claimed"]], Collection[str]] | None = None
    missing_note: str = "there is nothing to work on"
    models: Callable[["Settings"], Collection[str]] | None = None
    opened_before: Callable[["Services"], datetime | None] = lambda _: None
    compare: Callable[[Result, Result], "Compared"] | None = None


@dataclass
class Registry:
    """The sources that this process knows."""

    sources: dict[str, Source] = field(default_factory=dict)

    def add(self, source: Source) -> None:
        if self.sources.get(source.name, source) is not source:
            raise ValueError(f"two sources are named {source.name!r}")
        self.sources[source.name] = source

    def __getitem__(self, name: str) -> Source:
        return self.sources[name]

    def dispatched(self) -> set[str]:
        """Those that have a dispatcher, which looks after their shadows too."""
        return {name for name in self.sources if not name.startswith(SHADOW)}

    def of_queue(self, queues: Collection[str]) -> list[Source]:
        """Those of `dispatched` whose work is in one of the queues."""
        names = self.dispatched()
        return [source for name, source in self.sources.items() if name in names and source.queue in queues]


registry = Registry()


def load_sources(settings: "Ledger") -> None:
    """Put every source of this program, and those that the settings name, into the registry."""
    for module in ("tasks", *settings.extra_sources()):
        import_module(module)
