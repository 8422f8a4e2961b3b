"""Who is calling: a user by Supabase JWT, or the service by its key."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from aiworker.domain.errors import NotAuthenticated

_ALGORITHM = "HS256"
_CLOCK_SKEW_S = 10
_SERVICE_ROLE = "service_role"


@dataclass(frozen=True, slots=True)
class Principal:
    """`user_id` None is the service, which may act for any user."""

    user_id: UUID | None

    @property
    def is_service(self) -> bool:
        return self.user_id is None


class Authenticator:
    """Checks the `Authorization: Bearer` and `apikey` headers. At least one of the two secrets must be given."""

    def __init__(self, *, jwt_secret: str | None, service_key: str | None) -> None:
        self._jwt_secret = jwt_secret
        self._service_key = service_key

    def principal(self, headers: Mapping[str, str]) -> Principal:
        """Raises NotAuthenticated. Supabase sends the public anon key as `apikey` beside a user's token."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        for candidate in (bearer, headers.get("apikey", "")):
            if self._service_key and same_secret(candidate, self._service_key):
                return Principal(None)
        if not bearer:
            raise NotAuthenticated("no bearer token")
        return self._user(self._claims(bearer))

    def _claims(self, token: str) -> dict[str, Any]:
        if not self._jwt_secret:
            raise NotAuthenticated("tokens are not accepted: SUPABASE_JWT_SECRET is not set")
        try:
            # `aud` differs between projects and says nothing that `role` does not.
            return jwt.decode(
                token,
                self._jwt_secret,
                algorithms=[_ALGORITHM],
                leeway=_CLOCK_SKEW_S,
                options={"require": ["exp"], "verify_aud": False},
            )
        except (jwt.PyJWTError, UnicodeError) as error:
            raise NotAuthenticated(type(error).__name__) from None

    def _user(self, claims: Mapping[str, Any]) -> Principal:
        if claims.get("role") == _SERVICE_ROLE:
            return Principal(None)
        try:
            return Principal(UUID(str(claims.get("sub"))))
        except ValueError:
            raise NotAuthenticated("token has no user") from None


def same_secret(given: str, secret: str) -> bool:
    """In constant time. `given` is of a header: whatever was no UTF-8 in it came as surrogates."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), secret.encode())


def user_token(secret: str, user_id: UUID, expires_at: int) -> str:
    """A token as Supabase makes them. `expires_at` in epoch seconds."""
    claims = {"sub": str(user_id), "role": "authenticated", "aud": "authenticated", "exp": expires_at}
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def service_token(secret: str, expires_at: int) -> str:
    """The service's, for where no key of its own is configured. `expires_at` in epoch seconds."""
    return jwt.encode({"role": _SERVICE_ROLE, "exp": expires_at}, secret, algorithm=_ALGORITHM)
