"""What boto3's errors mean for a recording.

Sources: "Error responses" of the Amazon S3 API reference; `botocore.exceptions`; `urllib3.exceptions`.
"""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from app.errors import NothingThere, NotReady, Permanent, TobanError, Transient

# The way to the server, or a machine role that could not be asked for just now.
_PASSING = (
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    HTTPError,
    IncompleteReadError,
    MetadataRetrievalError,
)
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "InternalError", "ServiceUnavailable"}
_WRONG_KEYS = "the server does not accept the keys; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_WRONG_REGION = "the bucket is in another region; correct AWS_REGION"
_REASONS = {
    "NoSuchBucket": "the bucket does not exist; correct S3_BUCKET_NAME",
    "PermanentRedirect": _WRONG_REGION,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "InvalidAccessKeyId": _WRONG_KEYS,
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "InvalidToken": _WRONG_KEYS,
    "ExpiredToken": _WRONG_KEYS,
    "RequestTimeTooSkewed": "the clocks of this machine and the server differ; set this machine's clock",
}


def translated(error: Exception, what: str, permission: str) -> TobanError:
    """The Toban error for what boto3 raised while reading `what` (s3://bucket/key), which needs `permission`."""
    if isinstance(error, ClientError):
        return _answered(error, what, permission)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return NotReady(f"no keys for {what}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give a machine role")
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return NotReady(f"the server of {what} shows a certificate that is not trusted; install its authority")
    if isinstance(error, _PASSING):
        return Transient(f"reading {what} failed: {type(error).__name__}")
    if isinstance(error, BotoCoreError | ValueError):  # the request could not even be made
        return NotReady(f"{what} can't be asked for: {error}; correct S3_BUCKET_NAME, S3_ENDPOINT_URL or AWS_REGION")
    return Transient(f"reading {what} failed: {type(error).__name__}")


def _answered(error: ClientError, what: str, permission: str) -> TobanError:
    """The server answered, and said no."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _REASONS:
        return NotReady(f"{what} can't be read: {_REASONS[code]} ({code})")
    if code == "InvalidObjectState":
        return Permanent(f"{what} can't be read: the object is archived; restore it ({code})")
    if status == 404:
        return NothingThere(f"{what} does not exist")
    if code in _PASSING_CODES or status in {408, 429} or status >= 500 or status < 300:
        # Below 300: the answer began well and broke off, or is not S3's.
        return Transient(f"reading {what} failed: the server answered {status} {code}")
    if status in {401, 403}:
        return Permanent(
            f"reading {what} is not permitted ({code}); allow {permission} for these keys "
            "(and s3:ListBucket, without which S3 answers 403 for what is missing)"
        )
    return Permanent(f"{what} can't be read: the server answered {status} {code}")
