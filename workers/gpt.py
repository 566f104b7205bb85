"""The worker of the gpt queue: `celery -A workers.gpt worker`.

Threads, because it waits for somebody else's computer; LLM_CONCURRENCY of them, or what `-c` says.
"""

from app.celery import app
from workers.profiles import Profile

profile = Profile(queues=["gpt"], pool="threads")
profile.apply(app)

__all__ = ["app", "profile"]
