"""Bodies that are too large, too slow or of too many parts: refused in time, within memory, and not kept."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import httpx
import pytest

from neuraverse.registry import background
from neuraverse.registry.limits import (
    MAX_BEGIN_BYTES,
    MAX_BODY_BYTES,
    MAX_DIGESTS,
    MAX_DIGESTS_BYTES,
    MAX_PUBLISH_BYTES,
)
from neuraverse.statement import MAX_STATEMENT_BYTES
from tests.fuzz.hostile import ALLOWED, MEGABYTE, filled
from tests.registry.test_keeping import run

JSON = {"Content-Type": "application/json"}
STATEMENTS = "/v1/skills/acme/weld-seam/statements"
LIMITS = {
    "/v1/skills": MAX_PUBLISH_BYTES,
    "/v1/blobs/missing": MAX_DIGESTS_BYTES,
    "/v1/uploads": MAX_BEGIN_BYTES,
    STATEMENTS: MAX_BODY_BYTES,
    "/v1/nothing": MAX_BODY_BYTES,
}
DATA = bytes(range(256)) * 80_000  # 20 MB, so that an object store is sent parts
HEX = hashlib.sha256(DATA).hexdigest()


# --- JSON


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "limit"), LIMITS.items())
def test_fault_13_each_route_has_its_limit(local_api, problem, path, limit, chunked, kind):
    def post(size):
        body = b" " * size
        content = iter([body[:500], body[500:]]) if chunked else body
        return local_api.post(path, content=content, headers={"Content-Type": kind})

    assert post(limit).status_code in (404, 422)
    if path == "/v1/nothing" and chunked:
        return  # nobody reads it
    assert f"limit of {limit} bytes" in problem(post(limit + 1), 413, "too-large")["detail"]


def test_a_parcel_goes_to_one_route_alone(local_api, problem):
    body = b" " * (MAX_DIGESTS_BYTES + 1)
    headers = {"Content-Type": "application/x-tar"}
    problem(local_api.post("/v1/blobs/missing", content=body, headers=headers), 413, "too-large")
    problem(local_api.post("/v1/skills", content=body, headers=headers), 422, "integrity")


def escaped(text):
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def test_the_largest_bodies_that_are_right_are_taken(local_api, problem, tiny_skill, upload, submission):
    many = {"sha256": [f"{i:064x}" for i in range(MAX_DIGESTS)]}
    answer = local_api.post("/v1/blobs/missing", content=json.dumps(many, indent=8), headers=JSON)
    assert answer.json()["missing"] == many["sha256"]
    begun = json.dumps({"sha256": "0" * 64, "size": 5}, indent=8)
    assert local_api.post("/v1/uploads", content=begun, headers=JSON).status_code == 201
    text = escaped("{" + " " * (MAX_STATEMENT_BYTES - 2) + "}")
    said = f'{{"statement": "{text}", "signature": "{escaped("x" * 1024)}", "key": "{escaped("x" * 80)}"}}'
    problem(local_api.post(STATEMENTS, content=said, headers=JSON), 422, "manifest")  # it was read
    upload(local_api, tiny_skill)
    told = json.dumps(submission(tiny_skill), indent=100)
    assert local_api.post("/v1/skills", content=told).status_code == 201


def bombs(most):
    """JSON of which each byte costs a reader much."""

    def full(head, part, tail):
        count = (most - len(head) - len(tail)) // (len(part) + 1 + 4 * ("%x" in part))
        return filled(head, part, tail, count)

    yield "unknown keys", full("{", '"%x":0', "}")
    yield "unknown lists", full("{", '"%x":[]', "}")
    yield "one key again and again", full("{", '"manifest":""', "}")
    yield "lists for a text", full('{"manifest":[', "[]", "]}")
    yield "objects for a text", full('{"manifest":[', '{"":0}', "]}")
    yield "numbers", full('{"sha256":[', "0", "]}")
    yield "empty texts", full('{"sha256":[', '""', "]}")
    yield "lists", full("[", "[]", "]")
    yield "deep lists", b"[" * most
    yield "a long key", b'{"' + b"a" * (most - 10) + b'":0}'
    yield "a wide key", '{"\U0001f600'.encode() + b"a" * (most - 20) + b'":0}'
    yield "a wide text", '{"manifest":"\U0001f600'.encode() + b"a" * (most - 30) + b'"}'
    yield "escapes", b'{"manifest":"' + b'\\"' * (most // 2 - 10) + b'"}'
    yield "escapes without end", b'{"manifest":"' + b'\\"' * (most // 2 - 10)


@pytest.mark.parametrize("path", ["/v1/skills", "/v1/blobs/missing", STATEMENTS])
def test_fault_13_many_values_cost_little(start, tmp_path, problem, path):
    """A hundred bytes of memory for each value, and more for each that is wrong, would be hundreds of MB."""
    process, url = start(data=tmp_path / "data")
    status = Path(f"/proc/{process.pid}/status")
    forget = Path(f"/proc/{process.pid}/clear_refs")
    if not forget.exists():
        pytest.skip("memory is measured through Linux's /proc")

    def held(key):
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    with httpx.Client(base_url=url, timeout=20, headers=JSON) as http:
        http.post(path, content=b"{}")
        for name, body in bombs(LIMITS[path]):
            assert 0.7 * LIMITS[path] < len(body) <= LIMITS[path], name
            forget.write_text("5")
            before = held("VmRSS")
            answer = http.post(path, content=body)
            assert answer.status_code in (400, 422), name
            assert len(problem(answer, answer.status_code)["detail"]) < 300, name
            assert held("VmHWM") - before < ALLOWED, f"{name}: {(held('VmHWM') - before) / MEGABYTE:.0f} MB"


def test_a_name_that_the_client_made_up_is_cut(local_api, problem, tiny_skill, submission):
    long = "x" * 50_000
    for path, body in (("/v1/skills", submission(tiny_skill)), ("/v1/blobs/missing", {"sha256": []})):
        body = problem(local_api.post(path, json=body | {long: 1}), 422, "invalid")
        assert long[:50] in body["field"]
        assert len(body["detail"]) < 300


# --- bytes, on each kind of storage


def assert_nothing_is_kept(http, settings):
    """Neither an object in the store nor a row of one."""

    async def objects(registry):
        return [each.key async for each in registry.store.objects()]

    assert run(settings, objects) == []
    assert "neuraverse_blobs 0.0" in http.get("/metrics").text


@pytest.fixture
def live(settings):
    """A server that is quick to give up, and takes 12 MB."""
    hurried = settings.model_copy(update={"body_idle_s": 1.0, "max_blob_bytes": 12 * MEGABYTE})
    with background(hurried) as address, httpx.Client(base_url=address, timeout=30) as http:
        yield http


def begin(http, size):
    answer = http.post("/v1/uploads", json={"sha256": HEX, "size": size})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def half(http, method, path, data, *lines):
    """Send the head of a request and a part of its body, then nothing; the status of the answer."""
    head = (f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data) + 9}", *lines, "", "")
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode() + data)
        return int(connection.recv(4096).split()[1])


@pytest.mark.storages
@pytest.mark.parametrize("size", [3, 9 * MEGABYTE])
def test_fault_12_a_slow_body_is_given_up_and_leaves_nothing(live, settings, size):
    assert half(live, "PUT", f"/v1/blobs/{HEX}", DATA[:size]) == 408
    assert_nothing_is_kept(live, settings)
    assert live.get("/health/ready").status_code == 200


@pytest.mark.storages
@pytest.mark.parametrize("size", [3, 9 * MEGABYTE])
def test_fault_12_of_a_slow_upload_what_came_is_kept(live, settings, size):
    url = begin(live, 12 * MEGABYTE)
    assert half(live, "PATCH", url, DATA[:size], "Upload-Offset: 0") == 408
    assert live.get(url).json()["offset"] == size
    assert_nothing_is_kept(live, settings)


@pytest.mark.storages
@pytest.mark.parametrize("chunked", [False, True])
def test_fault_13_too_many_bytes_are_refused_however_they_come(live, settings, problem, chunked):
    """A bomb of chunks says its size nowhere, and is found out when parts of it are in the store."""
    pieces = [DATA[at : at + 100_000] for at in range(0, len(DATA), 100_000)]
    try:
        answer = live.put(f"/v1/blobs/{HEX}", content=iter(pieces) if chunked else DATA)
    except httpx.TransportError:  # closed on us while we were still sending
        assert not chunked
    else:
        assert "larger than the limit of 12000000 bytes" in problem(answer, 413, "too-large")["detail"]
    problem(live.get(f"/v1/blobs/{HEX}"), 404)
    assert_nothing_is_kept(live, settings)


@pytest.mark.storages
@pytest.mark.parametrize("chunked", [False, True])
def test_fault_13_more_than_an_upload_announced(live, settings, problem, chunked):
    size = 9 * MEGABYTE
    url = begin(live, size)
    data = DATA[: size + MEGABYTE]
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    answer = live.patch(url, content=iter(pieces) if chunked else data, headers={"Upload-Offset": "0"})
    problem(answer, 413, "too-large")
    assert live.get(url).json()["offset"] <= size
    assert_nothing_is_kept(live, settings)


@pytest.mark.parametrize("more", [b"", b"x"])
def test_fault_12_a_body_that_goes_on_after_its_answer_is_given_up(live, more):
    """Nobody reads what comes then, but it must not hold a connection for ever."""
    path = f"/v1/uploads/{'0' * 32}"
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nContent-Length: 9999\r\n\r\n"
    with socket.create_connection((live.base_url.host, live.base_url.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"abc")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 404")
        connection.sendall(more)
        while connection.recv(4096):  # a timeout if it stays open
            pass
