"""A worker outlives its broker."""

from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.transport.redis import QoS

from tests.support.servers import Redis
from workers import broker


@pytest.mark.parametrize(
    "restore",
    [
        broker.restore_unacked,
        pytest.param(
            broker._restore_unacked, marks=pytest.mark.xfail(raises=AttributeError, strict=True, reason="kombu's fault")
        ),
    ],
    ids=["worked around", "as kombu has it"],
)
def test_a_channel_with_unacknowledged_messages_can_be_closed(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch, restore: object
) -> None:
    """Where Celery's consumer is after a lost connection; the second case tells when the work-around can go."""
    monkeypatch.setattr(QoS, "restore_unacked", restore)
    connection: Any = Connection(redis_server.url)
    connection.connect()
    channel: Any = connection.default_channel
    queue = Queue("q", routing_key="q")
    connection.Producer(channel).publish({}, routing_key="q", declare=[queue])
    assert queue(channel).get() is not None
    channel._disconnect_pools()  # the socket broke, and the first attempt to close the channel failed on the way
    connection._do_close_transport()
    channel.close()
