"""An S3 server of its own: moto, over HTTP, on a free port."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import boto3
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from app.settings import Audio

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY, SECRET = "toban-test", "toban-test-secret"
REGION: Final = "ap-northeast-1"


_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """A bucket on the server at `url`."""

    url: str
    name: str
    client: "S3Client"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def settings(self, **changes: Any) -> Audio:
        return audio_settings(self.url, self.name, **changes)


def audio_settings(url: str, bucket: str, **changes: Any) -> Audio:
    """Settings for the S3-compatible server at `url`."""
    return Audio.model_validate(
        {
            "s3_endpoint_url": url,
            "s3_bucket_name": bucket,
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SecretStr(SECRET),
            "aws_region": REGION,
        }
        | changes
    )


@contextmanager
def moto_bucket() -> Iterator[Bucket]:
    """A running server with one empty bucket; moto's servers share what they hold, so it has a name of its own."""
    name = f"watchme-vault-{next(_numbers)}"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.session.Session().client(
            "s3", endpoint_url=url, region_name=REGION, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield Bucket(url, name, client)
    finally:
        server.stop()
