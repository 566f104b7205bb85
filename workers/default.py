"""The worker of the default queue: `celery -A workers.default worker`.

It runs the jobs that beat ticks: dispatchers and maintenance. They wait for the database and the broker, so threads.
"""

from app.celery import app
from workers.profiles import Profile

profile = Profile(queues=["default"], pool="threads", concurrency=4)
profile.apply(app)

__all__ = ["app", "profile"]
