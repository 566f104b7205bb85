"""What POST /wake/… leads to: a look at the source's rows; many requests at once are a few looks."""

import asyncio

from starlette.concurrency import run_in_threadpool

from app.dispatch import Dispatched, Send
from app.services import Services
from app.wake import look, more_after, pause_after


class Round:
    """A look, and the pause after it; `again`: somebody asked meanwhile, so another one follows.

    `first`: done with the first look, None when that failed.
    """

    def __init__(self) -> None:
        self.first: asyncio.Future[Dispatched | None] = asyncio.get_running_loop().create_future()
        self.again = False
        self.failing = False
        self.task: asyncio.Task[None] | None = None


def _sender() -> Send:
    """Celery, and all sources with it: a second, in which others are answered."""
    # First the package: another thread may be importing it from its top, and each would wait for the other's half.
    import tasks  # noqa: F401
    from tasks.base import send_item

    return send_item


class Wakes:
    """The sources that this process was told of in this moment."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rounds: dict[str, Round] = {}

    def ask(self, source: str) -> tuple[Round, bool]:
        """The round in which `source` is looked at; True: this request began it."""
        if source in self._rounds:
            self._rounds[source].again = True
            return self._rounds[source], False
        here = self._rounds[source] = Round()
        here.task = asyncio.create_task(self._look(source, here))
        return here, True

    async def _look(self, source: str, here: Round) -> None:
        try:
            send_item = await run_in_threadpool(_sender)
            here.again = True
            while here.again:
                here.again = False
                done = await run_in_threadpool(look, self._services, source, send_item)
                here.failing = done is None
                here.again |= more_after(done)
                if not here.first.done():
                    here.first.set_result(done)
                await asyncio.sleep(pause_after(done))
        finally:
            del self._rounds[source]
