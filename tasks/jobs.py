"""The jobs that beat ticks: dispatchers and maintenance."""

from dataclasses import asdict
from typing import Any

from app.celery import app
from app.dispatch import dispatch as dispatch_source
from app.errors import TobanError
from app.runtime import Runtime
from app.sources import registry
from tasks.base import Summary, run_job, send_item


@app.task(name="tasks.dispatch", throws=(TobanError,))
def dispatch(job: str) -> dict[str, Any]:
    """Send messages for a source's waiting rows. `job`: the dispatcher's name, which is its source's."""

    def work(runtime: Runtime) -> Summary:
        done = dispatch_source(runtime.services, registry[job], send_item)
        return {"message": str(done), **asdict(done)}

    return run_job(job, work)


@app.task(name="tasks.reconcile", throws=(TobanError,))
def reconcile(job: str = "reconcile") -> dict[str, Any]:
    """Mend what the triggers missed, and bring every report up to date."""

    def work(runtime: Runtime) -> Summary:
        mended = runtime.services.database.call("toban_reconcile")
        opened = sum(source["opened"] for source in mended["sources"])
        closed = sum(source["closed"] for source in mended["sources"])
        return {"message": f"{opened} opened, {closed} closed", "changed": opened + closed, **mended}

    return run_job(job, work)


@app.task(name="tasks.retention", throws=(TobanError,))
def retention(job: str = "retention") -> dict[str, Any]:
    """Forget finished items, runs and workers that are old enough."""

    def work(runtime: Runtime) -> Summary:
        keep = runtime.services.settings.ledger
        gone = runtime.services.database.call(
            "toban_retention", items_days=keep.keep_items_days, runs_days=keep.keep_runs_days
        )
        return {"message": f"{gone['items']} items and {gone['runs']} runs forgotten", "changed": 1, **gone}

    return run_job(job, work)
