"""Whether the broker answers, asked over a connection of its own. No Celery in here."""

from typing import Any

from app.errors import Transient
from app.settings import Broker


def ping(settings: Broker, seconds: float = 2) -> None:
    """Connect, sign in, open a channel (which is a round trip) and leave; `seconds`: for each step of that.

    Raises `Transient`.
    """
    from kombu import Connection

    url = settings.url.get_secret_value()
    is_redis = url.startswith(("redis", "sentinel"))
    options = {"socket_connect_timeout": seconds, "socket_timeout": seconds} if is_redis else {}
    try:
        with Connection(url, connect_timeout=seconds, transport_options=options) as connection:
            connection.ensure_connection(max_retries=max(len(connection.alt) - 1, 0), interval_start=0)
            channel: Any = connection.channel()
            channel.close()
    except Exception as error:  # each transport has its own errors
        raise Transient(f"the broker can't be used: {str(error) or type(error).__name__}") from error
