"""Show how the recordings of the demo get on, until each has ended."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from app.embedded import Stack, StackError
from app.health import share
from app.speech.transcribe import time_block

T = TypeVar("T")

# Without any news for so long, something is broken that nobody will mend, seconds.
PATIENCE = 300.0
ENDED = ("completed", "skipped", "failed")
WORDS = {"pending": "waiting", "queued": "queued", "processing": "listening"}
QUERY = """
    select w.partition as device, w.at, w.state, w.tries, w.progress, w.last_error as error,
           coalesce(t.text, '') as text, t.duration_seconds as seconds, t.real_time_factor as factor
    from public.work_items w
    left join public.transcripts t on t.device_id = w.partition and t.recorded_at = w.at and w.state = 'completed'
    where w.source = 'transcription' order by w.partition, w.at
"""


VERDICTS = """
    select v.device_id as device, v.date::text as date, v.time_block as block,
           case when w.state is null then 'unasked' when w.state = 'pending' and h.queue is not null then 'held'
                else w.state end as state,
           d.vibe_score as score, d.summary, d.analysis_result ->> 'model_used' as model,
           coalesce(h.reason, w.last_error) as error
    from public.vibe_whisper v
    left join public.dashboard d on d.device_id = v.device_id and d.date = v.date and d.time_block = v.time_block
    left join public.work_items w on w.source = 'analysis'
      and w.key = concat_ws('/', d.device_id, d.date::text, d.time_block)
    left join public.queue_holds h on h.queue = 'gpt' and h.incident
    where v.transcription <> '' order by 1, 2, 3
"""


@dataclass
class Verdict:
    """One time block in which somebody spoke.

    `state`: of its analysis; `unasked` while it has no prompt, `held` when nobody can be asked now.
    """

    device: str
    date: str
    block: str
    state: str
    score: float | None
    summary: str | None
    model: str | None
    error: str | None


@dataclass
class Item:
    """One recording; `seconds`: of audio; `factor`: seconds of work for each of them."""

    device: str
    at: datetime
    state: str
    tries: int
    progress: dict[str, float] | None
    error: str | None
    text: str
    seconds: float | None
    factor: float | None
    block: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.device[:8]}  {self.block}  {escape(self.name)}"

    @property
    def share(self) -> float:
        return 1.0 if self.state in ENDED else share(self.progress) or 0.0

    @property
    def remark(self) -> str:
        match self.state:
            case "completed" if self.factor:
                return f"[green]{1 / self.factor:.1f} × real time[/]"
            case "failed":
                return f"[red]failed: {escape(self.error or '')}[/]"
            case "skipped":
                return "[yellow]skipped: nothing was recorded[/]"
        again = f", try {self.tries + 1}: {escape(self.error)}" if self.error and self.state == "pending" else ""
        return WORDS.get(self.state, self.state) + again


def follow(screen: Console, stack: Stack, names: Mapping[tuple[str, datetime], str]) -> Sequence[Item]:
    """Show every recording's progress until all have ended; returns how.

    `names`: what a person calls a recording, by device and moment.
    Raises `StackError` when a program has died for good, or nothing happens any more.
    """
    zone = stack.settings.audio.zone
    with _display(screen) as show:
        for items in _looks(stack, Item, QUERY, "worker-whisper"):
            for item in items:
                item.block = " ".join(time_block(item.at, zone))
                item.name = names.get((item.device, item.at), "")
            show(items)
            if items and all(item.state in ENDED for item in items):
                break
    return items


def verdicts(stack: Stack) -> Sequence[Verdict]:
    """Wait until every block in which somebody spoke has its verdict, or gets none. Raises what `follow` raises."""
    return next(
        found
        for found in _looks(stack, Verdict, VERDICTS, "worker-default")
        if all(verdict.state in {*ENDED, "held"} for verdict in found)
    )


def _looks(stack: Stack, kind: type[T], query: LiteralString, worker: str) -> Iterator[Sequence[T]]:
    """What `query` finds, again and again, as long as the stack lives and something changes."""
    since, before = time.monotonic(), None
    with psycopg.connect(stack.filled["DATABASE_URL"], autocommit=True, row_factory=class_row(kind)) as connection:
        while True:
            found = connection.execute(query).fetchall()
            if found != before:
                since, before = time.monotonic(), deepcopy(found)
            yield found
            for state in stack.states().values():
                if state.state == "FATAL":
                    raise StackError(f"{state.name} has died too often; {stack.tail(state.name)}")
            if time.monotonic() - since > PATIENCE:
                raise StackError(f"nothing has happened for {PATIENCE:g} s; {stack.tail(worker)}")
            time.sleep(0.2)


@contextmanager
def _display(screen: Console) -> Iterator[Callable[[Sequence[Item]], None]]:
    """Bars on a terminal; elsewhere a line for each change."""
    if not screen.is_terminal:
        told: dict[tuple[str, datetime], str] = {}

        def tell(items: Sequence[Item]) -> None:
            for item in items:
                if told.get((item.device, item.at)) != item.remark:
                    told[item.device, item.at] = item.remark
                    screen.print(f"  {item.label}  {item.remark}")

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[remark]}"))
    with Progress(*columns, console=screen) as progress:
        bars: list[TaskID] = []

        def draw(items: Sequence[Item]) -> None:
            for number, item in enumerate(items):
                if number == len(bars):
                    bars.append(progress.add_task(item.label, total=1.0, remark=item.remark))
                progress.update(bars[number], description=item.label, completed=item.share, remark=item.remark)

        yield draw
