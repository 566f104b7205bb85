"""The broker: reachable, and a Redis that neither evicts nor forgets."""

from typing import Any

from app.doctor.finding import Finding, Findings
from app.settings import Broker


def wakeups(settings: Broker) -> Findings:
    from kombu import Connection

    url = settings.url.get_secret_value()
    if url.startswith("memory"):
        yield Finding("FAIL", "D301", "the broker is this process's memory", "set CELERY_BROKER_URL to a Redis")
        return
    try:
        with Connection(url, connect_timeout=5, transport_options={"socket_connect_timeout": 5}) as connection:
            connection.ensure_connection(max_retries=1, timeout=10)
            if not url.startswith(("redis", "sentinel")):
                yield Finding("OK", "D301", f"the broker answers ({connection.transport.driver_name})")
                return
            channel: Any = connection.default_channel
            yield from _redis(channel.client)
    except Exception as error:  # noqa: BLE001 - each transport has its own errors; the other checks go on
        remedy = "start the server, or correct CELERY_BROKER_URL"
        yield Finding("FAIL", "D301", f"the broker can't be used: {str(error) or type(error).__name__}", remedy)


def _redis(client: Any) -> Findings:  # noqa: ANN401 - redis.Redis, whatever the transport made of it
    info = client.info("server")
    yield Finding("OK", "D301", f"the broker answers (Redis protocol, version {info.get('redis_version', 'unknown')})")
    try:
        policy = client.config_get("maxmemory-policy")["maxmemory-policy"]
        persistent = client.config_get("appendonly")["appendonly"] == "yes"
    except Exception as error:  # noqa: BLE001 - hosted servers often forbid CONFIG, each in its own way
        yield Finding(
            "WARN", "D302", f"the broker's settings can't be read ({error})", "see that it does not evict keys"
        )
        return
    if policy != "noeviction":
        remedy = "set maxmemory-policy to noeviction"
        yield Finding("WARN", "D302", f"the broker drops messages when memory is short ({policy})", remedy)
    if persistent:
        yield Finding("OK", "D303", "the broker keeps its queue on disk")
    else:
        remedy = "set appendonly to yes; without it the ledger sends lost messages again, a little later"
        yield Finding("WARN", "D303", "the broker forgets its queue when it restarts", remedy)
