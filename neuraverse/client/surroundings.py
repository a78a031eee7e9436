"""How a machine reaches the network: proxies, and the authorities that vouch for servers.

Both come from the variables that every program takes them from: ``HTTPS_PROXY``, ``HTTP_PROXY``,
``ALL_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR``.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from neuraverse.errors import UsageError

if TYPE_CHECKING:
    import ssl

    import httpx

_LOOPBACK = ("all://127.0.0.1", "all://[::1]", "all://localhost")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def new_client(connect_s: float, read_s: float) -> httpx.Client:
    """An HTTP client that takes proxies and authorities from the variables that are usual for them.

    Args:
        connect_s: How long a connection may take [s].
        read_s: Silence that ends a request [s].

    Raises:
        UsageError: What the variables say cannot be followed.
    """
    import httpx

    near = dict.fromkeys(_LOOPBACK)  # not through a proxy, whatever HTTP_PROXY says
    timeout = httpx.Timeout(read_s, connect=connect_s)
    try:
        return httpx.Client(timeout=timeout, mounts=near, verify=_certificates(*_ssl_settings()))
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        names = (*_CERTIFICATES, *_PROXIES, *map(str.lower, _PROXIES))
        raise UsageError(
            f"proxy or certificates cannot be used: {error}",
            remedy=f"check {', '.join(name for name in names if os.environ.get(name)) or 'the installation'}",
        ) from error


def _ssl_settings() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in _CERTIFICATES)


@functools.cache
def _certificates(*_: str | None) -> ssl.SSLContext:
    """The authorities to believe, read once for each setting of the environment: that takes 10 ms."""
    import httpx

    return httpx.create_ssl_context()


def address(url: str) -> httpx.URL:
    """A URL, or an empty one if it is none."""
    import httpx

    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        return httpx.URL("")
