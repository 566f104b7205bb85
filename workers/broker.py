"""What Celery and kombu 5.7 do with a broker that Toban can't use, and a fault of theirs, worked around.

Workers need not know each other, for the ledger does. Celery has each of them read the heartbeats of all others
(gossip: a thousand workers are half a million messages a second), and wait a second for their answers whenever it
connects (mingle). And nothing is sent with a delay; with quorum queues each worker would set up 28 queues for that
whenever it connects.

The fault ends a worker. When Redis goes away, Celery's consumer first collects the connection and then closes its
channel, which wants to put unacknowledged messages back. The collected connection has no address any more, so that is
an `AttributeError`, which is no connection error, and the worker ends with "Unrecoverable error" (seen in 2 of some 200
restarts of Redis under load). There is nothing to put back into a broker that is gone, and nothing depends on it: the
ledger sends its items again.
"""

from typing import Any

from amqp import AccessRefused, NotAllowed
from celery import Celery
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from celery.worker.consumer.gossip import Gossip
from celery.worker.consumer.mingle import Mingle
from kombu.transport.redis import QoS

_restore_unacked = QoS.restore_unacked


def restore_unacked(self: Any, client: Any = None) -> Any:  # noqa: ANN401 - kombu has no types
    """Put the messages back, unless the connection is gone."""
    if self.channel.connection.client is None:
        return []
    return _restore_unacked(self, client)


def check_login(app: Celery) -> None:
    """End the program if a RabbitMQ refuses the login or the virtual host; one that is away is waited for."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "amqp":
            return
        try:
            connection.connect()
        except (AccessRefused, NotAllowed) as error:
            raise SystemExit(f"CELERY_BROKER_URL: the broker refuses it: {error.reply_text}") from None
        except connection.connection_errors:
            return


# Work-arounds, and mypy knows that they are none of ours.
setattr(QoS, "restore_unacked", restore_unacked)  # noqa: B010
setattr(Gossip, "compatible_transports", frozenset())  # noqa: B010
setattr(Mingle, "compatible_transports", frozenset())  # noqa: B010
setattr(DelayedDelivery, "include_if", lambda *_: False)  # noqa: B010
