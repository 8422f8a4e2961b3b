"""Who may call."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID, uuid4

import jwt
import pytest

from aiworker.cli.keys import Keys, is_loopback, keys_for
from aiworker.domain.errors import ConfigurationError, NotAuthenticated
from aiworker.gateway.auth import Authenticator, service_token, user_token
from aiworker.settings import load_settings

SECRET = "a-secret-of-at-least-thirty-two-bytes!"
KEY = "service-key"
USER = UUID("11111111-1111-4111-8111-111111111111")

auth = Authenticator(jwt_secret=SECRET, service_key=KEY)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token(**claims: object) -> str:
    usual = {"sub": str(USER), "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 60}
    return jwt.encode(usual | claims, SECRET, algorithm="HS256")


def test_a_users_token_names_the_user() -> None:
    assert auth.principal(bearer(user_token(SECRET, USER, int(time.time()) + 60))).user_id == USER


def test_the_service_key_works_as_bearer_and_as_apikey() -> None:
    assert auth.principal(bearer(KEY)).is_service
    assert auth.principal({"apikey": KEY}).is_service


def test_the_anon_key_beside_a_users_token_changes_nothing() -> None:
    assert auth.principal(bearer(token()) | {"apikey": "anon"}).user_id == USER


def test_a_service_role_token_is_the_service() -> None:
    assert auth.principal(bearer(token(role="service_role"))).is_service
    assert auth.principal(bearer(service_token(SECRET, int(time.time()) + 60))).is_service


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic abc"},
        bearer(""),
        bearer("not-a-token"),
        bearer("\udcff"),
        {"apikey": "anon"},
        {"apikey": "\udcff"},
        bearer(token(exp=int(time.time()) - 60)),
        bearer(token(sub="anonymous")),
        bearer(token(sub=None)),
        bearer(jwt.encode({"sub": str(USER), "exp": 9e9}, "another-secret-of-thirty-two-bytes!!!", algorithm="HS256")),
        bearer(jwt.encode({"sub": str(USER)}, SECRET, algorithm="HS256")),
        bearer(jwt.encode({"sub": str(USER), "exp": 9e9}, None, algorithm="none")),
    ],
)
def test_all_else_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(NotAuthenticated):
        auth.principal(headers)


def test_a_token_that_is_no_utf8_is_refused_where_there_is_no_service_key() -> None:
    with pytest.raises(NotAuthenticated):
        Authenticator(jwt_secret=SECRET, service_key=None).principal(bearer("\udcff"))


def test_without_a_jwt_secret_no_token_counts() -> None:
    with pytest.raises(NotAuthenticated):
        Authenticator(jwt_secret=None, service_key=KEY).principal(bearer(token()))


def test_without_a_service_key_an_empty_key_is_no_key() -> None:
    with pytest.raises(NotAuthenticated):
        Authenticator(jwt_secret=SECRET, service_key=None).principal({"apikey": ""})


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first = keys_for(load_settings(), tmp_path)
    assert keys_for(load_settings(), tmp_path) == first
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert first.service_key not in repr(first)


def test_configured_keys_win(tmp_path: Path) -> None:
    settings = load_settings(supabase_jwt_secret=SECRET)
    assert keys_for(settings, tmp_path) == Keys(SECRET, None)
    assert not list(tmp_path.iterdir())


def test_beyond_loopback_a_secret_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SUPABASE_JWT_SECRET"):
        keys_for(load_settings(host="0.0.0.0"), tmp_path)


def test_damaged_keys_are_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigurationError, match="delete it"):
        keys_for(load_settings(), tmp_path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_principals_of_two_users_differ() -> None:
    assert auth.principal(bearer(token(sub=str(uuid4())))).user_id != USER
