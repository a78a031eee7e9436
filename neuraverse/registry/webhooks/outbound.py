"""Sending to an address that a user gave us, without lending them our place in the network.

The name is resolved once for each request, every address that is not one of the public Internet is left out,
and the connection goes to an address that was looked at. Redirects are not followed, proxies are not used,
and of the answer only its status is read.

HTTP is spoken with h11, as the server does: a client that resolves names by itself could not be held to the
address that was looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from neuraverse.errors import NetworkError, UsageError
from neuraverse.registry.limits import MAX_OUTBOUND_ANSWER, MAX_URL, OUTBOUND_S

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_TRIED = 3  # addresses of one name
# Names of strangers are resolved apart from all else: a slow one keeps only its like waiting.
_resolver = ThreadPoolExecutor(16, "resolve")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to send to.

    Attributes:
        tls: Whether to speak TLS.
        host: Name or address, as the URL has it, without brackets.
        port: The port.
        path: Path and query.
    """

    tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read a URL.

        Raises:
            UsageError: It is none of http or https, has a user, a password or a fragment, or is malformed.
        """
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or {" ", "\\"} & set(url):
            raise _no_url(f"has more than {MAX_URL} characters, or some that no URL has")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _no_url("is malformed") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise _no_url("is none of http:// or https://")
        if "@" in parts.netloc or "#" in url:
            raise _no_url("has a user, a password or a fragment")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(
            tls=parts.scheme == "https",
            host=parts.hostname,
            port=_PORTS[parts.scheme] if port is None else port,
            path=path,
        )

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"


def public(address: Address) -> bool:
    """Whether an address is one of the public Internet."""
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or getattr(address, "is_site_local", False)  # of IPv6, long ago
    )


def meant(address: Address) -> Address:
    """The address that is reached: some of IPv6 stand for one of IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


async def addresses(target: Target, allowed: Sequence[Network]) -> list[str]:
    """The addresses of a target that may be sent to, in the order in which to try them.

    Args:
        target: Its name is resolved, now.
        allowed: Networks to send to although they are not public.

    Raises:
        NetworkError: There are none. It does not say which there are besides: who asks may not be from here.
    """
    find = functools.partial(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(_resolver, find)
    except (OSError, UnicodeError):
        found = []
    texts = dict.fromkeys(str(each[4][0]) for each in found)
    good = []
    for text in texts:
        address = meant(ipaddress.ip_address(text))
        if public(address) or any(address in network for network in allowed):
            good.append(text)
    if not good:
        raise NetworkError(
            f"{target.host} has no address that is sent to",
            remedy="only the public Internet is, and what the setting webhook_networks names",
        )
    return good[:_TRIED]


async def post(
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
    allowed: Sequence[Network],
    seconds: float = OUTBOUND_S,
) -> int:
    """Send a body; the status of the answer.

    Args:
        target: Where to.
        headers: Besides Host, Content-Length and Connection.
        body: What.
        allowed: Networks to send to although they are not public.
        seconds: How long all of it may take.

    Raises:
        NetworkError: It could not be sent, or was not answered; in a few words, which say nothing of ours.
    """
    try:
        async with asyncio.timeout(seconds):
            where = await addresses(target, allowed)
            return await _exchange(target, where, headers, body)
    except TimeoutError:
        raise NetworkError(f"no answer within {seconds:g} s") from None
    except ssl.SSLError as error:  # before OSError, of which it is one
        raise NetworkError(f"TLS failed: {error.reason or 'the certificate does not hold'}"[:200]) from error
    except OSError as error:
        raise NetworkError("the connection was refused or broke") from error
    except h11.RemoteProtocolError as error:
        raise NetworkError("the answer is none of HTTP, or its head is too long") from error


async def _exchange(target: Target, where: Sequence[str], headers: Mapping[str, str], body: bytes) -> int:
    reader, writer = await _connected(target, where)
    try:
        talk = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_OUTBOUND_ANSWER)
        fields = {
            "Host": target.authority,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        request = h11.Request(method="POST", target=target.path, headers=list(fields.items()))
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(talk.send(part) or b"")
        await writer.drain()
        left = MAX_OUTBOUND_ANSWER
        while True:
            event = talk.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                data = await reader.read(min(left, 4096)) if left else b""
                left -= len(data)
                talk.receive_data(data)  # nothing is the end, which h11 refuses before a response
            elif not isinstance(event, h11.InformationalResponse):
                raise NetworkError("the connection was closed without an answer")
    finally:
        writer.transport.abort()  # what else it says is not waited for


async def _connected(
    target: Target, where: Sequence[str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the addresses that takes one; TLS is spoken with the name."""
    tls: dict[str, Any] = {"ssl": _certificates(), "server_hostname": target.host} if target.tls else {}
    for text in where[:-1]:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(OUTBOUND_S / (len(where) + 1)):
                return await asyncio.open_connection(text, target.port, limit=MAX_OUTBOUND_ANSWER, **tls)
    return await asyncio.open_connection(where[-1], target.port, limit=MAX_OUTBOUND_ANSWER, **tls)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The authorities of the machine, read once."""
    return ssl.create_default_context()


def _no_url(why: str) -> UsageError:
    return UsageError(f"the address {why}", remedy="write it as https://HOST/PATH")
