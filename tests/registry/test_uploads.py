"""Resumable uploads: they go on where they were, end in the right bytes or in nothing, and expire."""

from __future__ import annotations

import hashlib

import pytest
from starlette.testclient import TestClient

from neuraverse.registry import Settings, create_app

DATA = bytes(range(256)) * 4096  # 1 MiB
HEX = hashlib.sha256(DATA).hexdigest()


def begin(api, size=len(DATA), sha256=HEX):
    answer = api.post("/v1/uploads", json={"sha256": sha256, "size": size})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/uploads/{answer.json()['id']}"
    return answer.headers["location"]


def patch(api, url, offset, data):
    return api.patch(url, headers={"Upload-Offset": str(offset)}, content=data)


@pytest.mark.storages
def test_in_three_pieces(api):
    url = begin(api)
    for start, stop in ((0, 400_000), (400_000, 400_001), (400_001, len(DATA))):
        assert api.get(url).json()["offset"] == start
        answer = patch(api, url, start, DATA[start:stop])
        assert (answer.status_code, answer.json()) == (200, {"offset": stop})
    assert api.put(url).status_code == 201
    assert api.get(f"/v1/blobs/{HEX}").content == DATA
    assert api.post("/v1/uploads", json={"sha256": HEX, "size": len(DATA)}).json()["exists"] is True


@pytest.mark.storages
def test_finished_twice(api):
    url = begin(api)
    patch(api, url, 0, DATA)
    assert [api.put(url).status_code for _ in range(2)] == [201, 200]
    assert api.get(f"/v1/blobs/{HEX}").content == DATA


def test_out_of_order(api, problem):
    url = begin(api)
    body = problem(patch(api, url, 1000, DATA[1000:]), 409, "offset")
    assert body["offset"] == 0
    patch(api, url, 0, DATA[:1000])
    assert problem(patch(api, url, 0, DATA[:1000]), 409, "offset")["offset"] == 1000
    assert api.get(url).json()["offset"] == 1000


def test_finished_too_early(api, problem):
    url = begin(api)
    patch(api, url, 0, DATA[:1000])
    assert problem(api.put(url), 409, "incomplete")["offset"] == 1000
    patch(api, url, 1000, DATA[1000:])
    assert api.put(url).status_code == 201


@pytest.mark.storages
def test_fault_05_wrong_bytes(api, problem):
    url = begin(api)
    patch(api, url, 0, b"x" * len(DATA))
    problem(api.put(url), 422, "integrity")
    problem(api.get(url), 404)
    problem(api.get(f"/v1/blobs/{HEX}"), 404)


@pytest.mark.parametrize("chunked", [False, True])
def test_fault_13_a_lying_length(api, problem, chunked):
    url = begin(api, size=1000)
    data = DATA[:1001]
    answer = patch(api, url, 0, iter([data[:700], data[700:]]) if chunked else data)
    problem(answer, 413, "too-large")
    assert api.get(url).json()["offset"] <= 1000


def test_sizes_and_digests_that_cannot_be(api, problem):
    for body in (
        {"sha256": HEX},
        {"sha256": HEX, "size": -1},
        {"sha256": HEX[:-1], "size": 1},
        {"size": 1},
        [],
    ):
        problem(api.post("/v1/uploads", json=body), 422)
    problem(api.post("/v1/uploads", json={"sha256": HEX, "size": 1 << 40}), 413)
    problem(api.patch(begin(api), content=b"x"), 400)  # no offset
    for name in ("0" * 31, "0" * 33, "../x", "Z" * 32):
        assert api.get(f"/v1/uploads/{name}").status_code in (400, 404)
    problem(api.get(f"/v1/uploads/{'0' * 32}"), 404)


def test_never_finished_expires(data_dir, problem):
    settings = Settings.load(data=data_dir, upload_hours=1e-9, collect_hours=0)
    with TestClient(create_app(settings)) as api:
        url = begin(api)
        for answer in (api.get(url), api.put(url), patch(api, url, 0, DATA)):
            problem(answer, 404, "no-such-upload")


def test_given_up(api, problem, data_dir):
    url = begin(api)
    patch(api, url, 0, DATA[:1000])
    assert api.delete(url).status_code == 204
    problem(api.get(url), 404)
    assert not list((data_dir / "incoming").iterdir())


def test_fault_01_a_restart_keeps_what_had_come(plain, data_dir):
    with TestClient(create_app(plain)) as api:
        url = begin(api)
        patch(api, url, 0, DATA[:300_000])
    with TestClient(create_app(plain)) as api:
        assert api.get(url).json()["offset"] == 300_000
        patch(api, url, 300_000, DATA[300_000:])
        assert api.put(url).status_code == 201
        assert api.get(f"/v1/blobs/{HEX}").content == DATA
