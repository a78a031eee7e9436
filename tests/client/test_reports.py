"""Reports from the field: sums, checked before they are sent, with body and software filled in."""

from __future__ import annotations

import dataclasses
import json
import math
import platform

import httpx
import numpy as np
import pytest

from neuraverse.client import Client, Measured, Resolved
from neuraverse.errors import NetworkError, NotFoundError, RegistryError, UsageError

DIGEST = "sha256:" + "ab" * 32
FOUND = Resolved(name="acme/weld-seam", version="1.0.0", digest=DIGEST)
LATERAL = Measured(unit="m", n=3, mean=0.0004, max=0.0011)


@pytest.fixture
def told(tmp_path):
    """A client of a registry that takes every report, and the requests that it got."""
    requests = []

    def answer(request):
        requests.append(request)
        return httpx.Response(201 if request.method == "POST" else 204)

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as http,
        Client("http://registry", home=tmp_path, http=http, token="nvt_robot") as client,
    ):
        yield client, requests


def test_a_report(told, offer):
    client, requests = told
    client.report(FOUND, offer, episodes=10, successes=8, aborts=1, errors={"lateral": LATERAL})
    (request,) = requests
    assert (request.method, request.url.path) == ("POST", "/v1/fleet/reports")
    assert request.headers["authorization"] == "Bearer nvt_robot"
    sent = json.loads(request.content)
    assert (
        sent.pop("software").items() >= {"python": platform.python_version(), "numpy": np.__version__}.items()
    )
    assert sent == {
        "digest": DIGEST,
        "episodes": 10,
        "successes": 8,
        "aborts": 1,
        "errors": {"lateral": {"unit": "m", "n": 3, "mean": 0.0004, "max": 0.0011}},
        "body": offer.digest(),
    }


def test_a_report_that_may_be_sent_again_has_a_key(told, offer):
    client, requests = told
    client.report(FOUND, offer, episodes=1, successes=1)
    client.report(FOUND, offer, episodes=1, successes=1, key="5f0c")
    assert [r.headers.get("idempotency-key") for r in requests] == [None, "5f0c"]
    for wrong in ("a b", "x" * 65, "ä"):
        with pytest.raises(UsageError, match="no key of a report"):
            client.report(FOUND, offer, episodes=1, successes=1, key=wrong)
    assert len(requests) == 2


def test_the_digest_of_a_body_is_that_of_what_it_offers(offer):
    assert offer.digest() == dataclasses.replace(offer).digest()
    first = dataclasses.replace(offer.observation[0], description="said otherwise")
    assert dataclasses.replace(offer, observation=(first, *offer.observation[1:])).digest() == offer.digest()
    for change in ({"reach_m": 1.0}, {"robot": "other"}, {"wrench_sensor": True}, {"action": ()}):
        assert dataclasses.replace(offer, **change).digest() != offer.digest()


def test_what_was_measured_is_summed_up():
    assert Measured.of([0.1, -0.3, 0.2], "m") == Measured(unit="m", n=3, mean=pytest.approx(0.2), max=0.3)
    assert Measured.of(np.float32([2.0]), "N") == Measured(unit="N", n=1, mean=2.0, max=2.0)
    with pytest.raises(UsageError, match="leave it out"):
        Measured.of([], "m")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"episodes": 0, "successes": 0}, "1 to 10000"),
        ({"episodes": 10_001, "successes": 0}, "1 to 10000"),
        ({"episodes": 1, "successes": 2}, "more than 1 episodes"),
        ({"episodes": 2, "successes": 1, "aborts": 2}, "count each once"),
        ({"episodes": 2, "successes": -1}, "successes is -1"),
        ({"episodes": 2.0, "successes": 1}, "episodes is 2.0"),
        ({"episodes": True, "successes": 1}, "episodes is True"),
    ],
)
def test_counts_that_cannot_be_are_not_sent(told, offer, counts, said):
    client, requests = told
    with pytest.raises(UsageError, match=said):
        client.report(FOUND, offer, **counts)
    assert requests == []


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("Lateral error", {}, "lower-case"),
        ("x" * 65, {}, "no name"),
        ("lateral", {"unit": "mm"}, "use SI"),
        ("lateral", {"n": 0}, "leave out what was not measured"),
        ("lateral", {"n": 1.5}, "n is 1.5"),
        ("lateral", {"mean": math.nan}, "cannot be"),
        ("lateral", {"mean": 0.0012}, "not above the greatest"),
        ("lateral", {"mean": -0.0001}, "magnitudes"),
        ("lateral", {"max": math.inf}, "finite"),
    ],
)
def test_errors_that_cannot_be_are_not_sent(told, offer, name, change, said):
    client, requests = told
    wrong = {name: dataclasses.replace(LATERAL, **change)}
    with pytest.raises(UsageError, match=said):
        client.report(FOUND, offer, episodes=3, successes=3, errors=wrong)
    many = {f"e{i}": LATERAL for i in range(21)}
    with pytest.raises(UsageError, match="21 errors are too many"):
        client.report(FOUND, offer, episodes=3, successes=3, errors=many)
    assert requests == []


def test_what_a_robot_runs(told):
    client, requests = told
    client.installed("acme/weld-seam@stable", "running", version="1.0.0", digest=DIGEST)
    client.installed("acme/weld-seam@stable", "left", reason="revoked")
    assert [(r.method, r.url.path) for r in requests] == [("PUT", "/v1/fleet/installs")] * 2
    assert [json.loads(r.content) for r in requests] == [
        {
            "follows": "acme/weld-seam@stable",
            "version": "1.0.0",
            "digest": DIGEST,
            "state": "running",
            "reason": "",
        },
        {
            "follows": "acme/weld-seam@stable",
            "version": None,
            "digest": None,
            "state": "left",
            "reason": "revoked",
        },
    ]


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (405, RegistryError), (429, NetworkError)]
)
def test_an_older_registry_and_a_busy_one(tmp_path, status, error):
    def answer(_):
        problem = httpx.ByteStream(b'{"detail": "Not Found", "remedy": ""}')
        return httpx.Response(status, headers={"content-type": "application/problem+json"}, stream=problem)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        with Client("http://registry", home=tmp_path, http=http, token="nvt_robot") as client:
            with pytest.raises(error):
                client.installed("acme/weld-seam@stable", "running")
            with pytest.raises(error):
                client.is_robot()
        with Client("http://registry", home=tmp_path, http=http) as client:
            assert not client.is_robot()
