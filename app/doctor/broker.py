"""The broker: reachable, and a Redis that neither evicts nor forgets, or a RabbitMQ that takes messages."""

from typing import Any

from app.doctor.finding import Finding, Findings
from app.settings import Broker

# How long it may take to take a message, seconds.
PATIENCE = 5


def wakeups(settings: Broker) -> Findings:
    from kombu import Connection

    from app.celery import transport

    url = settings.url.get_secret_value()
    if url.startswith("memory"):
        yield Finding("FAIL", "D301", "the broker is this process's memory", "set CELERY_BROKER_URL to a Redis")
        return
    try:
        options = transport(url)
        with Connection(
            url,
            connect_timeout=5,
            ssl=options.get("broker_use_ssl", False),
            transport_options=options.get("broker_transport_options"),
        ) as connection:
            connection.ensure_connection(max_retries=1, timeout=10)
            if url.startswith("amqp"):
                yield from _rabbitmq(connection, settings)
            else:
                channel: Any = connection.default_channel
                yield from _redis(channel.client)
    except Exception as error:  # noqa: BLE001 - each transport has its own errors; the other checks go on
        remedy = "start the server, or correct CELERY_BROKER_URL"
        yield Finding("FAIL", "D301", f"the broker can't be used: {str(error) or type(error).__name__}", remedy)


def _rabbitmq(connection: Any, settings: Broker) -> Findings:  # noqa: ANN401 - kombu.Connection
    import amqp

    about = connection.connection.server_properties
    yield Finding("OK", "D301", f"the broker answers ({about['product']} {about['version']})")
    sender = connection.clone()
    own = sender.default_channel.queue_declare(exclusive=True).queue
    try:
        for _ in range(2):  # it takes one before it stops listening to who sends; who only receives is told nothing
            sender.default_channel.basic_publish(amqp.Message("", delivery_mode=1), routing_key=own, timeout=PATIENCE)
    except OSError:
        remedy = "its log says which; give it more, or change vm_memory_high_watermark or disk_free_limit"
        yield Finding("FAIL", "D304", "the broker takes no messages: it is short of memory or of disk", remedy)
    else:
        yield Finding("OK", "D304", "the broker takes messages")
    sender.collect()  # to close it in good order would wait for a broker that takes nothing
    for queue in _queues():
        try:
            connection.channel().queue_declare(queue, passive=True)
            kind = {"x-queue-type": "quorum"} if settings.queue_type() == "quorum" else {}
            connection.channel().queue_declare(queue, durable=True, auto_delete=False, arguments=kind)
        except amqp.NotFound:
            continue  # the first worker makes it
        except amqp.PreconditionFailed:
            remedy = (
                f"correct RABBITMQ_QUEUE_TYPE; or stop the workers and delete it (rabbitmqctl delete_queue {queue}): "
                "the ledger sends again what was in it"
            )
            yield Finding("FAIL", "D305", f"the queue {queue} in the broker is no {settings.queue_type()} one", remedy)


def _queues() -> list[str]:
    import tasks  # noqa: F401 - registers the sources
    from app.sources import registry

    return sorted({"default", *(source.queue for source in registry.sources.values())})


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
