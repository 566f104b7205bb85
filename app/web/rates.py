"""How often one address may do what costs something before anybody is known. By this process alone: it slows guessing.

Passwords have their own count, in the database (`toban_try_sign_in`).
"""

from fastapi import HTTPException, Request
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from app.web.i18n import t

BAD_TOKENS = parse("20/minute")  # API keys and access tokens that are wrong
REPORTS = parse("240/minute")  # a machine whose every minute's jobs report, many times over


def address(request: Request) -> str:
    """Where the request comes from; behind a trusted proxy, what that says."""
    return request.client.host if request.client else "unknown"


class Rates:
    """Counts in this process's memory."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, rate: RateLimitItem, request: Request) -> None:
        """Raises 429 when there were too many."""
        if not self._limiter.test(rate, address(request)):
            raise too_many(rate)

    def count(self, rate: RateLimitItem, request: Request) -> bool:
        """One more; False: it is one too many."""
        return self._limiter.hit(rate, address(request))


def too_many(rate: RateLimitItem) -> HTTPException:
    return HTTPException(
        429, t("Too many requests from this address."), headers={"Retry-After": str(rate.get_expiry())}
    )
