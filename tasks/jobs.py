"""The jobs that beat ticks: dispatchers and maintenance."""

from dataclasses import asdict
from typing import Any

from app.celery import app
from app.dispatch import dispatch as dispatch_source
from app.errors import Permanent, TobanError
from app.gpt.batches import run_batches
from app.gpt.prompts import write_prompts
from app.retention import batches, drain, retain, told
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
        database = runtime.services.database
        opened = closed = 0
        for mended in batches(database, "toban_reconcile"):
            # A source whose table is gone must not keep the others from being mended; it is told when they are.
            broken = [f"{source['source']}: {source['error']}" for source in mended["sources"] if "error" in source]
            opened += sum(source.get("opened", 0) for source in mended["sources"])
            closed += sum(source.get("closed", 0) for source in mended["sources"])
        for done in batches(database, "toban_forget_recordings"):
            closed += done["forgotten"]
        keep = runtime.services.settings.ledger
        drain(database, "toban_upkeep_calls", calls_days=keep.keep_calls_days)
        drain(database, "toban_upkeep_shadow", days=keep.keep_items_days)
        # What nobody scrapes must not pile up.
        database.call("toban_metrics")
        if broken:
            raise Permanent("; ".join(broken))
        return {"message": f"{opened} opened, {closed} closed", "changed": opened + closed}

    return run_job(job, work)


@app.task(name="tasks.retention", throws=(TobanError,))
def retention(job: str = "retention") -> dict[str, Any]:
    """Forget what is old enough: finished items and runs, and what people said where `RETENTION_…` says so."""

    def work(runtime: Runtime) -> Summary:
        gone = retain(runtime.services)
        return {"message": told(gone), "changed": 1, "gone": gone}

    return run_job(job, work)


@app.task(name="tasks.timeblock_prompt", throws=(TobanError,))
def timeblock_prompt(job: str = "timeblock-prompt") -> dict[str, Any]:
    """Write the prompts of time blocks whose recordings have been heard."""

    def work(runtime: Runtime) -> Summary:
        done = write_prompts(runtime.services, job)
        return {"message": str(done), "changed": done.written, **asdict(done)}

    return run_job(job, work)


@app.task(name="tasks.analysis_batch", throws=(TobanError,))
def analysis_batch(job: str = "analysis-batch") -> dict[str, Any]:
    """Send rows that may wait in batches, and take the answers of those that are back."""

    def work(runtime: Runtime) -> Summary:
        done = run_batches(runtime.services)
        return {"message": str(done), "changed": done.sent + done.answered + done.left, **asdict(done)}

    return run_job(job, work)
