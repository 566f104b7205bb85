"""What went wrong with a download, in the words of somebody who can mend it.

No message holds a login, a token or a signature: addresses are shown by their host alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from app.errors import NotReady, TobanError
from app.speech.models.fetch import Damaged
from app.speech.models.places import on_disk

_AGAIN = "what has come is kept, and the next try goes on from there"
_OTHER_WAYS = (
    "check the network, HTTPS_PROXY and WHISPER_MODELS_MIRROR; or copy the models folder from a machine that has it"
)


@contextmanager
def told(name: str, url: str, place: object) -> Iterator[None]:
    """Errors of downloading the model `name` from `url` into `place` come out as `NotReady`."""
    try:
        yield
    except TobanError:  # of `progress`, say
        raise
    except Damaged as error:
        raise NotReady(_said(name, url, str(error), "try again, or use another mirror")) from error
    except httpx.HTTPError as error:
        raise NotReady(_said(name, url, *_over_http(error, url))) from error
    except OSError as error:
        raise on_disk(error, name, place) from error
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        # An address of a proxy that httpx can't use, say, and whose text may hold a password; or an answer that is no
        # JSON: a mirror that is none, a login page.
        reason = str(error) if isinstance(error, ImportError) else "the address or the answer can't be used"
        raise NotReady(_said(name, url, reason, _OTHER_WAYS)) from error


def _said(name: str, url: str, reason: str, remedy: str) -> str:
    return f"the model {name} can't be downloaded from {_server(url)}: {reason}; {remedy}"


def _over_http(error: httpx.HTTPError, url: str) -> tuple[str, str]:
    """Reason and remedy."""
    match error:
        case httpx.HTTPStatusError():
            return _answered(error.response)
        case httpx.ProxyError():
            return f"the proxy refuses it ({error})", "correct HTTPS_PROXY (HTTP_PROXY for http addresses)"
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return f"it can't be reached{_through(url)} ({error})", _OTHER_WAYS
        case httpx.TimeoutException():
            return "it does not go on sending", _AGAIN
        case _:
            return "the transfer broke off", _AGAIN


def _answered(response: httpx.Response) -> tuple[str, str]:
    status, gated = response.status_code, response.headers.get("X-Error-Code") == "GatedRepo"
    if gated or status == 403:
        return (
            f"access is restricted ({status})",
            "accept the model's terms on its page, and set HF_TOKEN to a token of that account",
        )
    if status == 401:
        return (
            "there is no such model, or it is not for everybody (401)",
            "correct the name; or set HF_TOKEN, and for a mirror the login in WHISPER_MODELS_MIRROR",
        )
    if status == 404:
        return "there is no such model (404)", "correct the name, or WHISPER_MODELS_MIRROR"
    if status == 407:
        return "the proxy wants a login (407)", "write it into HTTPS_PROXY as http://user:password@host:port"
    return f"it answers {status}", "try again later"


def _server(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _through(url: str) -> str:
    """The proxy that the environment names for the address."""
    proxy = getproxies().get(urlsplit(url).scheme)
    return f" through the proxy {_server(proxy)}" if proxy and not proxy_bypass(_server(url)) else ""
