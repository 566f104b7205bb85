"""One task of a process that looks again and again, for as long as somebody needs it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def polling(
    look: Callable[[], Awaitable[None]], needed: Callable[[], bool], every: float, name: str
) -> AsyncIterator[None]:
    """Within this block `look` is called `every` so many seconds while it is `needed`; `name` is the task's."""

    async def poll() -> None:
        while True:
            if needed():
                await look()
            await asyncio.sleep(every)

    poller = asyncio.create_task(poll(), name=name)
    try:
        yield
    finally:
        poller.cancel()
        with suppress(asyncio.CancelledError):
            await poller
