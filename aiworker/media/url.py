"""From a user's text to a URL that may be asked. Pure; names are judged later, by the addresses they resolve to."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urljoin

from yarl import URL

from aiworker.domain.errors import MediaAddressForbidden, MediaUrlInvalid
from aiworker.media.address import is_listed, is_public, literal_address

_MAX_LENGTH = 8192
# Stricter than any parser that comes after it, so that no two of them can read different hosts.
_SHAPE = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[^\s@:/?#\\\[\]%]+)(?::[0-9]{1,5})?(?:[/?#].*)?", re.IGNORECASE | re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


def parse_target(text: str, allowed_hosts: Collection[str]) -> URL:
    """The http or https URL in `text`, its query kept byte for byte since it may be signed.

    Raises MediaUrlInvalid, and MediaAddressForbidden where the host is an address that is not public. A public host may
    be asked on ports 80, 443 and from 1024 up: below are mail, shells and the like, never pictures.
    """
    if len(text) > _MAX_LENGTH:
        raise MediaUrlInvalid("the URL is too long", limit_chars=_MAX_LENGTH)
    if _CONTROL.search(text) or not _SHAPE.fullmatch(text):
        raise MediaUrlInvalid("not an absolute http or https URL without user name")
    try:
        url = URL(text, encoded=text.isascii() and " " not in text)
        host, port = (url.raw_host or "").lower(), url.port or 0
    except ValueError:
        raise MediaUrlInvalid("the URL cannot be parsed") from None
    _check_origin(host, port, allowed_hosts)
    return url


def redirect_target(current: URL, location: str, allowed_hosts: Collection[str]) -> URL:
    """Where `location` leads from `current`, checked like a user's URL; never from https back to http."""
    try:
        text = urljoin(str(current), location)
    except ValueError:
        raise MediaUrlInvalid("redirect to something that is not a URL") from None
    target = parse_target(text, allowed_hosts)
    if current.scheme == "https" and target.scheme == "http":
        raise MediaUrlInvalid("redirect from https to http")
    return target


def _check_origin(host: str, port: int, allowed_hosts: Collection[str]) -> None:
    if port == 0:
        raise MediaUrlInvalid("the URL has port 0")
    if is_listed(host, port, allowed_hosts):
        return
    address = literal_address(host)
    if address is None and (len(host) > 253 or not _NAME.fullmatch(host)):
        raise MediaUrlInvalid("the URL's host is not a host name")
    if address is not None and not is_public(address):
        raise MediaAddressForbidden("the URL's address is not public")
    if port < 1024 and port not in (80, 443):
        raise MediaUrlInvalid("the URL's port is none that pictures come from", port=port)
