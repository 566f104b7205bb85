"""The tests' own servers do what their users rely on."""

import pytest
import redis

from tests.support.servers import Redis


def test_redis_keeps_its_port_and_nothing_else(redis_server: Redis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("key", "value")
        redis_server.flush()
        assert client.get("key") is None
        client.set("key", "value")
        redis_server.stop()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        redis_server.start()
        assert client.get("key") is None
        redis_server.restart()
        assert client.ping()
