"""People whom Supabase Auth has signed in: their access token is a JSON Web Token.

Source: Supabase documentation, "JSON Web Tokens" and "JWT Signing Keys". The public keys of a project are such tokens
too, signed with the same secret, but without a person (`sub`) and an audience, so they open nothing here.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jwt
from jwt.exceptions import PyJWKClientConnectionError, PyJWTError

from app.errors import Transient
from app.settings import Web
from app.web.accounts import ROLES, Role

# What a token with a key of the project's own may be signed with; never a shared secret, never `none`.
ASYMMETRIC = ["ES256", "RS256", "EdDSA"]
LEEWAY = 10  # s, for clocks that differ


@dataclass(frozen=True)
class Guest:
    """`expires_at`: seconds since 1970."""

    name: str
    role: Role
    expires_at: float

    def seconds(self) -> float:
        """How long the token is still good."""
        return max(1.0, self.expires_at - time.time())


class SupabaseAuth:
    """Checks access tokens with the project's secret, or with its public signing keys."""

    def __init__(self, settings: Web) -> None:
        self._secret = settings.supabase_jwt_secret
        self._url = settings.supabase_jwks_url
        self._audience = settings.supabase_jwt_audience

    @property
    def on(self) -> bool:
        return self._secret is not None or self._url is not None

    @cached_property
    def _keys(self) -> jwt.PyJWKClient:
        return jwt.PyJWKClient(str(self._url), cache_keys=True, lifespan=600, timeout=5)

    def guest(self, token: str) -> Guest | None:
        """Who it is. None: the token is not good, or its person has no role here.

        The role is `toban_role` of `app_metadata`, which only the project's service may write.
        Raises `Transient` when the signing keys can't be fetched.
        """
        try:
            claims = self._claims(token)
        except PyJWKClientConnectionError as error:
            raise Transient(f"the signing keys of SUPABASE_JWKS_URL can't be fetched: {error}") from error
        except PyJWTError:
            return None
        except ValueError as error:  # what came from there is no JSON
            raise Transient(f"what came from SUPABASE_JWKS_URL can't be read: {error}") from error
        metadata = claims.get("app_metadata")
        wanted = metadata.get("toban_role") if isinstance(metadata, dict) else None
        role = next((role for role in ROLES if role == wanted), None)
        if role is None or claims.get("role") != "authenticated":
            return None
        return Guest(str(claims.get("email") or claims["sub"]), role, float(claims["exp"]))

    def _claims(self, token: str) -> Mapping[str, Any]:
        if self._secret is not None:
            key: Any = self._secret.get_secret_value()
            algorithms = ["HS256"]
        else:
            key = self._keys.get_signing_key_from_jwt(token)
            algorithms = ASYMMETRIC
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=self._audience,
            leeway=LEEWAY,
            options={"require": ["exp", "sub", "aud"]},
        )
