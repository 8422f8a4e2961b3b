"""Secrets that `up`, `demo` and a loopback gateway make for themselves where none are set."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from aiworker.domain.errors import ConfigurationError
from aiworker.settings import Settings

_FILE = "keys.json"


@dataclass(frozen=True, slots=True)
class Keys:
    """`jwt_secret` signs users' tokens; `service_key` may name any user."""

    jwt_secret: str | None = field(repr=False)
    service_key: str | None = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables that hand these to a process of ours."""
        named = {"SUPABASE_JWT_SECRET": self.jwt_secret, "SUPABASE_SERVICE_ROLE_KEY": self.service_key}
        return {name: value for name, value in named.items() if value}


def keys_for(settings: Settings, state_dir: Path) -> Keys:
    """The configured secrets; on loopback with none configured, secrets kept in `state_dir` (mode 600).

    Raises ConfigurationError when the gateway would listen beyond loopback with no secret.
    """
    configured = Keys(
        settings.supabase_jwt_secret.get_secret_value() if settings.supabase_jwt_secret else None,
        settings.supabase_service_role_key.get_secret_value() if settings.supabase_service_role_key else None,
    )
    if configured.jwt_secret or configured.service_key:
        return configured
    if not is_loopback(settings.host):
        raise ConfigurationError(
            f"HOST={settings.host} is beyond loopback: set SUPABASE_JWT_SECRET (and SUPABASE_SERVICE_ROLE_KEY), "
            "or set HOST=127.0.0.1"
        )
    return _kept(state_dir)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _kept(state_dir: Path) -> Keys:
    path = state_dir / _FILE
    try:
        saved = json.loads(path.read_text())
        return Keys(saved["jwt_secret"], saved["service_key"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError):
        raise ConfigurationError(f"{path} is damaged: delete it, and new keys are made") from None
    state_dir.mkdir(parents=True, exist_ok=True)
    keys = {"jwt_secret": secrets.token_urlsafe(48), "service_key": secrets.token_urlsafe(32)}
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.touch(mode=0o600)
    scratch.write_text(json.dumps(keys))
    try:
        # The first of several starters wins; a link never overwrites.
        os.link(scratch, path)
    except FileExistsError:
        return _kept(state_dir)
    finally:
        scratch.unlink()
    return Keys(**keys)
