"""A fault of kombu 5.7's Redis transport that ends a worker, worked around.

When the broker goes away, Celery's consumer first collects the connection and then closes its channel, which wants to
put unacknowledged messages back. The collected connection has no address any more, so that is an `AttributeError`,
which is no connection error, and the worker ends with "Unrecoverable error" (seen in 2 of some 200 restarts of Redis
under load). There is nothing to put back into a broker that is gone, and nothing depends on it: the ledger sends its
items again.
"""

from typing import Any

from kombu.transport.redis import QoS

_restore_unacked = QoS.restore_unacked


def restore_unacked(self: Any, client: Any = None) -> Any:  # noqa: ANN401 - kombu has no types
    """Put the messages back, unless the connection is gone."""
    if self.channel.connection.client is None:
        return []
    return _restore_unacked(self, client)


setattr(QoS, "restore_unacked", restore_unacked)  # noqa: B010 - a work-around, and mypy knows it is none of ours
