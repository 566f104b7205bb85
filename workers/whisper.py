"""The worker of the whisper queue: `celery -A workers.whisper worker`.

Processes, because speech is computed: one recording each, with the processors shared out among them.
"""

from app.celery import app
from app.settings import SettingsError, Whisper, load_group
from workers.profiles import Profile, cores

try:
    profile = Profile(queues=["whisper"], pool="prefork", concurrency=load_group(Whisper).children or cores())
except SettingsError as error:
    raise SystemExit(str(error)) from None
profile.apply(app)

__all__ = ["app", "profile"]
