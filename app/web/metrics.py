"""/metrics, for Prometheus: what the database counts for all processes together (docs/metrics.md).

Every copy of the web process answers the same, because nothing is counted in here: `toban_metrics` has the sums and a
picture that is at most some seconds old.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from app import tracing
from app.health import STATES
from app.settings import Settings
from app.web.api.problems import errors
from app.web.auth import User, api_key
from app.web.pages.common import queues
from app.web.state import state_of

router = APIRouter(tags=["metrics"])
Scraper = Annotated[User, Depends(api_key("metrics"))]

Answer = Mapping[str, Any]
Samples = Iterable[tuple[list[str], float | None]]

KINDS = ("job", "items", "overdue", "beat", "worker", "queue", "alerts")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "In the format that `Accept` prefers",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'toban_items{source="transcription",state="pending"} 3.0\n',
                }
            },
        },
        **errors(),
    },
)
def metrics(request: Request, _: Scraper) -> Response:
    """What is counted, for Prometheus (docs/metrics.md)."""
    state = state_of(request)
    answer = state.services.database.call("toban_metrics", zone=state.settings.audio.device_timezone)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exposition(answer, state.settings, queues()))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": content_type})


class Exposition:
    """One answer of `toban_metrics` as metric families; `queues`: the queue of each source."""

    def __init__(self, answer: Answer, settings: Settings, queues: Mapping[str, str]) -> None:
        self._answer = answer
        self._picture: Answer = answer["picture"]
        self._settings = settings
        self._queues = queues
        self._counts: dict[str, list[tuple[list[str], float]]] = {}
        for row in answer["counts"]:
            self._counts.setdefault(row["metric"], []).append((row["labels"], float(row["value"])))

    def collect(self) -> Iterator[Metric]:
        yield from self._items()
        yield from self._work()
        yield from self._calls()
        yield from self._workers()
        yield from self._jobs()
        info = InfoMetricFamily("toban_build", "The program that answers.")
        info.add_metric([], {"version": tracing.program(), "python": platform.python_version()})
        yield info
        yield gauge(
            "toban_snapshot_timestamp_seconds",
            "When the numbers that are not counters were looked up.",
            [],
            [([], self._answer["taken_at"])],
        )

    # --- items --------------------------------------------------------------------------------------------------------

    def _items(self) -> Iterator[Metric]:
        waiting, ended = self._picture["waiting"], self._answer["ended"]
        counts = {(source, state): 0 for source in self._answer["sources"] for state in STATES}
        counts |= {(source, "pending"): row["pending"] for source, row in waiting.items()}
        counts |= {(row["source"], row["state"]): row["n"] for row in self._picture["under_way"]}
        counts |= {(source, state): n for source, states in ended.items() for state, n in states.items()}
        yield gauge(
            "toban_items",
            "Items in the ledger.",
            ["source", "state"],
            (([source, state], n) for (source, state), n in counts.items()),
        )
        sources = sorted({source for source, _ in counts})
        yield gauge(
            "toban_items_due",
            "Items that are due, on their way to a worker, or at work.",
            ["source", "queue"],
            (
                (
                    [source, self._queues.get(source, "")],
                    waiting.get(source, {}).get("due", 0)
                    + counts.get((source, "queued"), 0)
                    + counts.get((source, "processing"), 0),
                )
                for source in sources
            ),
        )
        yield gauge(
            "toban_items_oldest_due_seconds",
            "How long the item that has been due longest has been due; 0: none is.",
            ["source"],
            (
                ([source], max(0.0, self._answer["now"] - since) if since else 0.0)
                for source, since in ((source, waiting.get(source, {}).get("since")) for source in sources)
            ),
        )

    # --- attempts -----------------------------------------------------------------------------------------------------

    def _work(self) -> Iterator[Metric]:
        yield self._counter(
            "toban_attempts", "Attempts at items that ended.", ["source", "outcome", "kind"], "attempts"
        )
        yield self._histogram("toban_item_wait_seconds", "From when an item became pending to its first start.", "wait")
        yield self._histogram(
            "toban_item_run_seconds", "How long attempts took that completed or failed an item.", "run"
        )
        speech = ["model", "engine"]
        yield self._counter(
            "toban_speech_audio_seconds", "Length of the recordings that were transcribed.", speech, "audio"
        )
        yield self._counter("toban_speech_work_seconds", "How long transcribing them took.", speech, "work")

    # --- language models ----------------------------------------------------------------------------------------------

    def _calls(self) -> Iterator[Metric]:
        yield self._counter(
            "toban_llm_calls", "Calls to language models that ended.", ["model", "outcome", "lane"], "calls"
        )
        yield self._counter("toban_llm_tokens", "Tokens of these calls.", ["model", "type"], "tokens")
        yield self._counter("toban_llm_cost_usd", "US dollars of these calls.", ["model", "lane"], "cost")
        spent, gpt = self._answer["spent"], self._settings.gpt
        budgets = {"day": gpt.llm_budget_daily, "month": gpt.llm_budget_monthly}
        yield gauge(
            "toban_llm_spent_usd",
            "US dollars that this day's and month's calls have cost, or may yet cost.",
            ["period"],
            (([period], float(spent[period])) for period in budgets),
        )
        set_ = {period: float(budget) for period, budget in budgets.items() if budget is not None}
        yield gauge(
            "toban_llm_budget_usd", "The budget, where one is set.", ["period"], (([p], b) for p, b in set_.items())
        )
        yield gauge(
            "toban_llm_budget_left_usd",
            "What is left of it.",
            ["period"],
            (([period], max(0.0, budget - float(spent[period]))) for period, budget in set_.items()),
        )

    # --- workers ------------------------------------------------------------------------------------------------------

    def _workers(self) -> Iterator[Metric]:
        def of(name: str, words: str, column: str) -> Metric:
            return gauge(
                name,
                words,
                ["node", "queue"],
                (([row["node"], row["queue"]], row[column]) for row in self._picture["workers"]),
            )

        yield of("toban_workers", "Living workers.", "workers")
        yield of("toban_worker_processes", "Their processes that run items (children, in a prefork pool).", "processes")
        yield of("toban_worker_slots", "Items that they can run at once.", "slots")
        yield of("toban_worker_busy_slots", "Items that they run.", "busy")
        yield of("toban_worker_memory_bytes", "Resident memory of these processes.", "memory")
        yield of(
            "toban_worker_memory_limit_bytes", "Memory at which they are replaced, where one is set.", "memory_limit"
        )
        yield gauge(
            "toban_queue_held",
            "1: nothing of the queue is claimed, because of the cause.",
            ["queue", "cause"],
            ((hold, 1) for hold in self._picture["holds"]),
        )

    # --- jobs and incidents -------------------------------------------------------------------------------------------

    def _jobs(self) -> Iterator[Metric]:
        def of(name: str, words: str, value: Callable[[Answer], Any]) -> Metric:
            # (`job` is a label of Prometheus itself.)
            return gauge(name, words, ["job_name"], (([row["job"]], value(row)) for row in self._picture["jobs"]))

        yield of(
            "toban_job_last_success_timestamp_seconds", "When a run last succeeded.", lambda job: job["success_at"]
        )
        yield of("toban_job_last_duration_seconds", "How long the last run took.", lambda job: job["seconds"])
        yield of("toban_job_failing", "1: its last runs failed.", lambda job: int(job["failing"]))
        yield of(
            "toban_job_overdue",
            "1: it is missed, or runs too long.",
            lambda job: int(job["state"] in {"missed", "overran"}),
        )
        yield of("toban_job_paused", "1: somebody has paused it.", lambda job: int(job["paused"]))
        yield gauge(
            "toban_beat_last_tick_timestamp_seconds", "When a beat last sent a tick.", [], [([], self._picture["beat"])]
        )
        yield gauge(
            "toban_monitor_last_look_timestamp_seconds",
            "When the monitor last looked for incidents.",
            [],
            [([], self._picture["looked"])],
        )
        found = dict.fromkeys(KINDS, 0) | self._picture["incidents"]
        yield gauge("toban_incidents", "Open incidents.", ["kind"], (([kind], n) for kind, n in found.items()))

    def _counter(self, name: str, words: str, labels: list[str], short: str) -> Metric:
        family = CounterMetricFamily(name, words, labels=labels)
        for values, value in self._counts.get(short, ()):
            family.add_metric(values, value)
        return family

    def _histogram(self, name: str, words: str, short: str) -> Metric:
        family = HistogramMetricFamily(name, words, labels=["source"])
        found = {tuple(labels): value for labels, value in self._counts.get(f"{short}_bucket", ())}
        for [source], total in self._counts.get(f"{short}_sum", ()):
            buckets, so_far = [], 0.0
            for bound in self._answer["bounds"]:
                so_far += found.get((source, bound), 0.0)
                buckets.append(("+Inf" if bound == "Infinity" else str(float(bound)), so_far))
            family.add_metric([source], buckets, total)
        return family


def gauge(name: str, words: str, labels: list[str], samples: Samples) -> Metric:
    """A gauge; what is not known (None) has no sample."""
    family = GaugeMetricFamily(name, words, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
