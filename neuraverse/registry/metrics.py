"""What Prometheus may ask: requests, their times, publishes, waiting readers, and the registry's size."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraverse.registry.feed import count_pushed

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """Counters of one server process; each application has its own."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("neuraverse_requests", "Requests answered.", labels, registry=self._all)
        self.seconds = Histogram(
            "neuraverse_request_seconds",
            "Time to the first byte of an answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._all,
        )
        self.received = Counter("neuraverse_received_bytes", "Bytes of request bodies.", registry=self._all)
        self.sent = Counter("neuraverse_sent_bytes", "Bytes of answers.", registry=self._all)
        self.active = Gauge(
            "neuraverse_active_requests", "Requests in flight, streams included.", registry=self._all
        )
        self._counts = {
            name: Gauge(f"neuraverse_{name}", f"{name.capitalize()} in the registry.", registry=self._all)
            for name in ("orgs", "skills", "versions", "events", "blobs", "blob_bytes")
        }

    def render(self, counts: dict[str, int]) -> bytes:
        """The text of ``/metrics``."""
        for name, value in counts.items():
            self._counts[name].set(value)
        return generate_latest(self._all)


class Measure:
    """Middleware that counts.

    Args:
        app: The application.
        metrics: Where to.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, begun = self._metrics, time.perf_counter()
        method = scope["method"] if scope["method"] in _METHODS else "other"

        async def counted_receive() -> Message:
            message = await receive()
            metrics.received.inc(len(message.get("body", b"")))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, never the path: names are not for labels, and there is no end to them.
                route = getattr(scope.get("route"), "path", "none")
                metrics.requests.labels(method, route, message["status"]).inc()
                metrics.seconds.labels(method, route).observe(time.perf_counter() - begun)
            metrics.sent.inc(len(message.get("body", b"")))
            await send(message)

        count_pushed(scope, metrics.sent.inc)
        metrics.active.inc()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            metrics.active.dec()
