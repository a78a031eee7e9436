"""HTTP to one registry: bounded answers, and every failure as an error that says what to do.

"The registry could not be asked" is a `NetworkError` and worth a retry; "the registry said no" is a
`RegistryError` and is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from neuraverse.client.deadline import Connections
from neuraverse.client.refs import printable
from neuraverse.client.surroundings import address, new_client
from neuraverse.errors import (
    ConflictError,
    NetworkError,
    NeuraverseError,
    NotFoundError,
    RegistryError,
    RevokedError,
    UsageError,
)

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8420"
CONNECT_S = 5.0
READ_S = 30.0  # silence that ends a request
ANSWER_S = 60.0  # the head of an answer, and all of a small one
MAX_ANSWER_BYTES = 8 << 20
LEAST_RATE = 256  # a large answer that comes slower than this [bytes/s] …
SLOW_S = 30.0  # … for so long is given up
TAR = "application/x-tar"
_RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class Transport:
    """One registry.

    Args:
        url: Its address.
        http: The client to use; one is made if not given.
        token: Sent as a bearer token.

    Raises:
        UsageError: The address is no HTTP URL, or a variable for proxies or certificates cannot be followed.
    """

    def __init__(
        self, url: str | None = None, http: httpx.Client | None = None, token: str | None = None
    ) -> None:
        self.url = (url or os.environ.get("NEURAVERSE_REGISTRY") or DEFAULT_URL).rstrip("/")
        parsed = address(self.url)
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
            raise UsageError(f"{self.url!r} is no address of a registry", remedy=f"write it as {DEFAULT_URL}")
        self._owned = http is None
        self._http = new_client(CONNECT_S, READ_S) if http is None else http
        self._connections = Connections()
        # Bodies are checked byte by byte, so no encoding may come between.
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "neuraverse"}
        self.token = token

    def _with_token(self) -> dict[str, str]:
        """The headers of a request to the registry itself; nobody else gets the token."""
        if not self.token:
            return self._headers
        if not re.fullmatch("[!-~]{1,200}", self.token):  # else httpx refuses it, in words that contain it
            raise UsageError(
                "the token has characters that no token has, or too many",
                remedy="look at NEURAVERSE_TOKEN, or `neuraverse login` again",
            )
        return self._headers | {"Authorization": f"Bearer {self.token}"}

    def close(self) -> None:
        """Close the connections, if they are ours."""
        if self._owned:
            self._http.close()

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        ok: tuple[int, ...] = (200,),
        read_s: float | None = None,
        **request: Any,
    ) -> Iterator[httpx.Response]:
        """Send a request and give the response before its body is read.

        Args:
            method: HTTP method.
            path: Path below the registry's address.
            headers: More headers.
            ok: Statuses to hand back; any other is an error.
            read_s: Silence that ends the request [s]; `READ_S` if not given.
            request: ``params``, ``json`` or ``content`` of httpx.

        Raises:
            NetworkError: It could not be asked, or something else than a registry answered.
            RegistryError: It refused.
        """
        with self._ask(
            method, self.url + path, {**self._with_token(), **(headers or {})}, read_s, request
        ) as found:
            if found.status_code not in ok:
                raise self._refusal(found)
            yield found

    @contextlib.contextmanager
    def blob(self, path: str, headers: Mapping[str, str], ok: tuple[int, ...]) -> Iterator[httpx.Response]:
        """As `stream`, for a blob, which may lie in an object store: one redirect is followed.

        What is there is asked for without our token, and never without TLS if the registry has it. Whatever
        comes is hashed, so that it does not matter who sends it.
        """
        with self.stream("GET", path, headers=headers, ok=(*ok, 307)) as found:
            if found.status_code != 307:
                yield found
                return
            elsewhere = found.headers.get("location", "")
        there = address(elsewhere)
        allowed = ("https",) if self.url.startswith("https:") else ("https", "http")
        if there.scheme not in allowed or not there.host:
            raise self._stranger(f"it sent us to {printable(elsewhere)[:100]!r} for {path}")
        plain = {**self._headers, **headers}
        with self._ask("GET", elsewhere, plain, None, {}) as found:
            if found.status_code not in ok:
                raise NetworkError(
                    f"the object store of {self.url} answered with status {found.status_code}",
                    remedy="try again later",
                )
            yield found

    @contextlib.contextmanager
    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        read_s: float | None,
        request: Mapping[str, Any],
    ) -> Iterator[httpx.Response]:
        import httpx

        silence_s = READ_S if read_s is None else read_s
        timeout = httpx.Timeout(READ_S, connect=CONNECT_S, read=silence_s)
        with self._failures(silence_s), contextlib.ExitStack() as stack:
            with self._connections.answered_within(max(ANSWER_S, silence_s)) as trace:
                asked = self._http.stream(
                    method,
                    url,
                    headers=dict(headers),
                    timeout=timeout,
                    follow_redirects=False,
                    extensions={"trace": trace},
                    **request,
                )
                try:
                    response = stack.enter_context(asked)
                except ValueError as error:  # of a host that cannot be
                    raise NetworkError(f"{url[:200]!r} cannot be reached: {error}") from error
            yield response

    def expect(self, response: httpx.Response, kind: str, path: str) -> None:
        """Whether a response has a body of this media type, which a login page for example has not.

        Raises:
            NetworkError: It has not.
        """
        if _media_type(response) != kind:
            raise self._stranger(f"it sent {_media_type(response) or 'an untyped body'} for {path}")

    def chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """A large body as it comes, as long as it comes with some speed.

        Raises:
            NetworkError: It comes too slowly.
        """
        begun, got = time.monotonic(), 0
        for chunk in response.iter_raw():
            yield chunk
            got += len(chunk)
            lasted = time.monotonic() - begun
            if lasted > SLOW_S:
                if got < LEAST_RATE * lasted:
                    raise NetworkError(
                        f"{self.url} sent only {got} bytes in {lasted:.0f} s", remedy="try again later"
                    )
                begun, got = time.monotonic(), 0

    def read(self, response: httpx.Response, limit: int, what: str) -> bytes:
        """A small body.

        Raises:
            NetworkError: It is larger than `limit`, or takes too long.
        """
        data = bytearray()
        deadline = time.monotonic() + ANSWER_S
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > limit:
                raise NetworkError(
                    f"{self.url} answered with more than {limit} bytes for {what}",
                    remedy="do not use this registry",
                )
            if time.monotonic() > deadline:
                raise NetworkError(
                    f"{self.url} took more than {ANSWER_S:g} s to send {what}", remedy="try again"
                )
        return bytes(data)

    def json(self, method: str, path: str, *, ok: tuple[int, ...] = (200,), **request: Any) -> dict[str, Any]:
        """The JSON object that a request is answered with.

        Raises:
            NetworkError: It could not be asked, or something else than a registry answered.
            RegistryError: It refused.
        """
        with self.stream(method, path, ok=ok, **request) as response:
            return self.parsed(response, path)

    def parsed(self, response: httpx.Response, path: str) -> dict[str, Any]:
        """The JSON object in a small body.

        Raises:
            NetworkError: There is something else in it, as of a login page.
        """
        if not _media_type(response).endswith("json"):
            raise self._stranger(f"it sent {_media_type(response) or 'an untyped body'} for {path}")
        data = self.read(response, MAX_ANSWER_BYTES, path)
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            raise self._stranger(f"it sent broken JSON for {path}") from None
        if not isinstance(answer, dict):
            raise self._stranger(f"it sent no JSON object for {path}")
        return answer

    def bytes(self, path: str, limit: int, what: str) -> bytes:
        """A small file.

        Raises:
            NetworkError: It could not be asked, or the file is larger than `limit`.
            RegistryError: It refused.
        """
        with self.stream("GET", path) as response:
            return self.read(response, limit, what)

    def _stranger(self, why: str) -> NetworkError:
        return NetworkError(
            f"{self.url} does not answer as a neuraverse registry: {why}",
            remedy="check the address in --registry or NEURAVERSE_REGISTRY",
        )

    def _refusal(self, response: httpx.Response) -> NeuraverseError:
        status = response.status_code
        problem: Any = None
        if _media_type(response) == "application/problem+json":
            with contextlib.suppress(ValueError, RecursionError):
                problem = json.loads(self.read(response, MAX_ANSWER_BYTES, "a refusal"))
        if response.request.method == "HEAD" and status == 404:
            return NotFoundError(f"{self.url} has nothing at {response.request.url.path}")
        if not isinstance(problem, dict):
            if status in _RETRY_STATUS:
                return NetworkError(f"{self.url} answered with status {status}", remedy="try again later")
            return self._stranger(f"it sent status {status} without saying why")
        detail, remedy = (printable(str(problem.get(key, ""))) for key in ("detail", "remedy"))
        if status in _RETRY_STATUS:
            return NetworkError(f"{self.url}: {detail}", remedy=remedy or "try again later")
        kind = {404: NotFoundError, 409: ConflictError, 410: RevokedError}.get(status, RegistryError)
        return kind(detail, remedy=remedy)

    @contextlib.contextmanager
    def _failures(self, read_s: float) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectTimeout:
            raise self._down(f"no connection within {CONNECT_S:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise self._down(str(error) or "connection refused") from error
        except httpx.TimeoutException as error:
            raise NetworkError(
                f"the registry at {self.url} was silent for {read_s:g} s",
                remedy="it is slow or hangs; try again",
            ) from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise NetworkError(
                f"the connection to the registry at {self.url} broke: {reason}", remedy="try again"
            ) from error

    def _down(self, reason: str) -> NetworkError:
        return NetworkError(
            f"cannot reach a registry at {self.url}: {reason}",
            remedy="is `neuraverse serve` running there? Else set NEURAVERSE_REGISTRY to its address",
        )


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
