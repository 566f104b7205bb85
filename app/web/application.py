"""The composition root of the web process."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from app import tracing
from app.monitor.tick import Monitor
from app.services import Services
from app.web import failures, routes
from app.web.accounts import Accounts
from app.web.api import analysis
from app.web.api.document import document
from app.web.batches import Batches
from app.web.cors import Cors
from app.web.events import Events
from app.web.headers import Guard
from app.web.health import Ready
from app.web.proxies import Proxies
from app.web.rates import Rates
from app.web.reader import ReaderMiddleware
from app.web.signing import Signing
from app.web.state import State
from app.web.supabase_auth import SupabaseAuth
from app.web.traces import Traced
from app.web.wakes import Wakes


def create_app(services: Services) -> FastAPI:
    """The pages over `services`, which the caller closes. Nothing connects before the first request."""
    settings = services.settings
    wakes = Wakes(services)
    state = State(
        services,
        Accounts(services.database, settings.web),
        Signing(settings.web, services.database),
        SupabaseAuth(settings.web),
        Rates(),
        Events(services.database),
        Ready(services),
        wakes,
        analysis.waiting(services, wakes),
        Batches(services),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tracing.start(settings.traces, "web")
        stop = threading.Event()
        # Should all else be dead, this process still looks, and tells people.
        watch = threading.Thread(target=lambda: Monitor(services).run(stop), name="toban-monitor", daemon=True)
        watch.start()
        async with state.events.polling(), state.analyses.polling(), state.batches.polling():
            yield
        stop.set()
        await run_in_threadpool(watch.join, 5)
        await run_in_threadpool(tracing.stop)

    app = FastAPI(
        title="Toban",
        lifespan=lifespan,
        # Their pages come from elsewhere, and would tell strangers what there is; ours is app/web/api/document.py.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # Its own spans have addresses and queries in them; ours (app/web/traces.py) do not.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.toban = state
    failures.install(app)
    routes.install(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    # The last one is the outermost.
    app.add_middleware(failures.Calm)
    if settings.web.origins:
        app.add_middleware(Cors, origins=settings.web.origins)
    app.add_middleware(ReaderMiddleware, settings=settings)
    app.add_middleware(Guard, https=settings.web.secure)
    app.add_middleware(Traced)
    app.add_middleware(Proxies, trusted=settings.web.trusted(), own=routes.first_parts(app))
    return app
