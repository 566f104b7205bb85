"""The worker of the whisper queue: `celery -A workers.whisper worker`.

Processes, because speech is computed: one recording each. How many is decided at start, by cores and memory.
"""

from app.celery import app
from workers.profiles import Profile

profile = Profile(queues=["whisper"], pool="prefork")
profile.apply(app)

__all__ = ["app", "profile"]
