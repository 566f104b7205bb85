"""How a queue's worker is shaped, for `celery -A workers.<queue> worker`; options on its command line still win."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from celery import Celery
from kombu import Queue


@dataclass(frozen=True)
class Profile:
    """`queues`: what it consumes; `pool`: Celery's pool; `concurrency`: items at once, None: decided at start."""

    queues: Sequence[str]
    pool: Literal["prefork", "threads"]
    concurrency: int | None = None

    def apply(self, app: Celery) -> None:
        quorum = app.conf.task_create_missing_queue_type == "quorum"
        arguments = {"x-queue-type": "quorum"} if quorum else None
        app.conf.update(
            task_queues=[Queue(queue, routing_key=queue, queue_arguments=arguments) for queue in self.queues],
            worker_pool=self.pool,
            worker_concurrency=self.concurrency,
        )
