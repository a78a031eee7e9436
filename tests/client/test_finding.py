"""What a client asks for when it searches, and what it makes of the answers."""

from __future__ import annotations

import dataclasses
import json

import httpx
import pytest

from neuraverse.client import Client
from neuraverse.client.refs import Evidence, Field
from neuraverse.errors import NetworkError
from neuraverse.manifest import wilson_lower

JSON = {"content-type": "application/json"}
ENTRY = {
    "name": "acme/weld-seam",
    "version": "1.0.0",
    "digest": f"sha256:{'0' * 64}",
    "title": "",
    "description": "",
    "robot": "r",
    "rate": 0.9,
    "lower": 0.8,
    "n": 100,
    "created": "",
    "task": "t",
    "interface": f"sha256:{'1' * 64}",
    "license": "MIT",
    "tags": ["a"],
    "visibility": "public",
    "evidence": {"bound": 0.7, "n": 200, "source": "field"},
    "field": {"n": 200, "successes": 150, "lower": 0.7},
}


@pytest.fixture
def asked():
    """Requests that were made."""
    return []


@pytest.fixture
def answering(tmp_path, asked):
    """``answering(page)``: a client of a registry that gives pages, one after the other."""

    def make(*pages):
        left = list(pages)

        def handler(request):
            asked.append(request)
            body = json.dumps(left.pop(0) if len(left) > 1 else left[0]).encode()
            return httpx.Response(200, headers=JSON, stream=httpx.ByteStream(body))

        http = httpx.Client(transport=httpx.MockTransport(handler))
        return Client("http://registry.test", home=tmp_path, http=http)

    return make


def test_facets_and_offers_against_a_registry(author, robot, tiny_skill, offer):
    author.publish(tiny_skill.path)
    (found,) = robot.search("seam", org="acme", tags=["welding"], success=0.5)
    assert found.evidence == Evidence(bound=wilson_lower(95, 100), n=100, source="simulation")
    assert (found.field, found.visibility, found.tags) == (None, "public", ("welding",))
    assert found.interface == tiny_skill.manifest.interface.digest()
    for none in ({"org": "rival"}, {"tags": ["welding", "x"]}, {"success": 0.99}, {"robot": "x"}):
        assert robot.search("seam", **none) == []
    assert robot.runnable(offer) == robot.runnable(offer, "seam", license="apache-2.0") == [found]
    assert robot.runnable(offer, "other") == []
    assert robot.runnable(dataclasses.replace(offer, max_rate_hz=1.0)) == []
    with pytest.raises(TypeError, match="no facet 'tasks'"):
        robot.search(tasks="x")


def test_pages_are_followed_as_far_as_asked(answering, asked):
    first = {"skills": [ENTRY] * 100, "next": "b-2"}
    second = {"skills": [ENTRY] * 20, "next": None}
    client = answering(first, second)
    assert len(client.search("x y", task="t", tags=["a", "b"])) == 120
    assert [dict(r.url.params.multi_items())["cursor"] for r in asked] == ["", "b-2"]
    assert asked[0].url.params.get_list("tag") == ["a", "b"]
    assert asked[0].url.params["q"] == "x y"
    asked.clear()
    assert len(answering(first, second).search(limit=110)) == 110
    assert [r.url.params["limit"] for r in asked] == ["100", "10"]
    asked.clear()
    assert len(answering(first).search(limit=100)) == 100
    assert len(asked) == 1
    assert answering(first).search(limit=0) == []


def test_what_an_entry_says_is_read(answering):
    (found,) = answering({"skills": [ENTRY], "next": None}).search()
    assert found.field == Field(n=200, successes=150, lower=0.7)
    assert found.evidence.source == "field"


@pytest.mark.parametrize(
    "changes",
    [
        {"evidence": None},
        {"evidence": {"bound": "0.7", "n": 1, "source": "field"}},
        {"evidence": {"bound": 0.7, "n": 1, "source": 5}},
        {"field": {"n": 0, "successes": 0, "lower": 0.0}},
        {"field": {"n": 1, "successes": 2, "lower": 0.0}},
        {"field": []},
        {"tags": "a"},
        {"tags": [1]},
        {"task": None},
        {"visibility": 1},
    ],
)
def test_malformed_entries(answering, changes):
    with pytest.raises(NetworkError, match="malformed"):
        answering({"skills": [ENTRY | changes], "next": None}).search()
