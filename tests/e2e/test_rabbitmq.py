"""RabbitMQ in the place of Redis."""

from pathlib import Path

import pytest

from app.doctor.broker import wakeups
from app.settings import Broker
from tests.support import toy
from tests.support.servers import RabbitMQ
from tests.support.system import System


def found(url: str, **settings: str) -> dict[str, str]:
    """What `toban doctor` says of a broker: code → level and words."""
    return {
        finding.code: f"{finding.level} {finding.what}"
        for finding in wakeups(Broker.model_validate({"url": url, **settings}))
    }


def test_the_main_job_survives_its_broker_and_a_child(
    database_url: str, rabbitmq: RabbitMQ, tmp_path: Path, long_recording: Path
) -> None:
    with System(database_url, rabbitmq, tmp_path) as system:
        system.add(long_recording, 4)
        system.start()
        system.in_the_middle()
        system.children("whisper")[0].kill()
        rabbitmq.restart()
        assert system.wait_done() == {"completed": 4}
        tries = [item["tries"] for item in system.items()]
        assert sum(tries) <= 5, "only the killed child's recording was begun again"
        assert len(system.sql("select * from transcripts where text <> ''")) == 4
        assert all(process.child.poll() is None for process in system.processes.values())


def test_a_message_that_waits_for_long_ends_no_worker(database_url: str, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """RabbitMQ closes the channel of a worker that holds a message unacknowledged; here in quorum queues."""
    env = {"TOBAN_SOURCES": "tests.support.toy", "RABBITMQ_QUEUE_TYPE": "quorum"}
    with System(database_url, rabbitmq, tmp_path, **env) as system:
        system.sql(toy.TABLE)
        worker = system.run("toy", "-A", "app", "worker", "-Q", "toy,default", "-P", "threads", "-c", "1")
        for number, wish in enumerate(("a while", "tea", "flaky")):
            system.sql("insert into chores (id, owner, wish) values (%s, 'me', %s)", number, wish)
        assert system.wait_done() == {"completed": 3}
        assert "delivery acknowledgement on channel" in system.log("toy"), "the channel was closed meanwhile"
        assert worker.child.poll() is None
        assert [item["tries"] for item in system.items()] == [1, 1, 2]
        asked = system.celery("inspect", "ping")
        assert "pong" in asked.stdout
    assert found(rabbitmq.url, rabbitmq_queue_type="quorum") == {
        "D301": "OK the broker answers (RabbitMQ 3.10.8)",
        "D304": "OK the broker takes messages",
    }
    assert found(rabbitmq.url)["D305"] == "FAIL the queue toy in the broker is no classic one"


def test_its_certificate_has_to_be_of_its_host(rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "certificate verify failed" in found(rabbitmq.tls_url)["D301"]
    monkeypatch.setenv("SSL_CERT_FILE", str(rabbitmq.authority))
    assert found(rabbitmq.tls_url)["D301"].startswith("OK")
    # The same machine under a name that the certificate does not have.
    assert "certificate verify failed" in found(rabbitmq.tls_url.replace("localhost", "127.1"))["D301"]


def test_who_is_refused_ends_with_one_message(database_url: str, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    assert "vhost nowhere not found" in found(rabbitmq.url.removesuffix("//") + "/nowhere")["D301"]
    url = rabbitmq.url.replace(":guest@", ":other@")
    with System(database_url, rabbitmq, tmp_path, CELERY_BROKER_URL=url) as system:
        assert system.run("default", "-A", "workers.default", "worker").child.wait(30) == 1
        log = system.log("default")
    assert "CELERY_BROKER_URL: the broker refuses it: ACCESS_REFUSED - Login was refused" in log
    assert "Traceback" not in log
    assert ":other@" not in log
