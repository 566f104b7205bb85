"""The pages: each a router with its templates; `routers` are all of them."""

from app.web.pages import days, helpers, incidents, items, jobs, recordings, search, work, workers

routers = [
    incidents.router,
    jobs.router,
    days.router,
    recordings.router,
    search.router,
    work.router,
    items.router,
    workers.router,
]

helpers.install()

__all__ = ["routers"]
