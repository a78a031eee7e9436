"""For operators: health, metrics, logs without secrets, clients that are slow, several processes."""

from __future__ import annotations

import json
import logging
import resource
import socket
import sqlite3
import threading
import time

import httpx
import pytest

from neuraverse.registry import Settings, background, logs
from tests.registry.test_publish import TAR, parcel


def test_health(local_api, plain, data_dir):
    assert local_api.get("/health/live").json()["status"] == "ok"
    assert local_api.get("/health/ready").json() == {"status": "ok"}
    (data_dir / "incoming").rename(data_dir / "elsewhere")
    answer = local_api.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert "store" in answer.json()
    assert str(data_dir) not in answer.text


def test_metrics(local_api, tiny_skill, publisher):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    local_api.get("/v1/skills/acme/weld-seam/latest")
    local_api.get("/v1/skills/acme/nothing/latest")
    text = local_api.get("/metrics").text
    assert 'neuraverse_requests_total{method="POST",route="/v1/skills",status="201"} 1.0' in text
    route = "/v1/skills/{org}/{name}/{version}"
    for status in (200, 404):
        assert f'{{method="GET",route="{route}",status="{status}"}} 1.0' in text
    assert "neuraverse_versions 1.0" in text
    assert "neuraverse_blobs 5.0" in text
    assert "weld-seam" not in text


def test_fault_18_no_secret_is_logged(tmp_path, caplog, tiny_skill, publisher):
    caplog.set_level(logging.DEBUG, logger="neuraverse")
    with background(tmp_path / "data") as url:
        headers = {
            "Authorization": "Bearer hush-hush",
            "Cookie": "hush-hush",
            "X-Request-Id": "from-the-proxy",
        }
        answer = httpx.get(f"{url}/v1/skills?q=hush-hush", headers=headers)
        httpx.post(f"{url}/v1/skills", content=b"hush-hush", headers=headers)
        httpx.get(f"{url}/nothing", headers=headers)
    assert answer.headers["x-request-id"] == "from-the-proxy"
    lines = [r for r in caplog.records if r.name == "neuraverse.registry.access"]
    assert [(r.method, r.path, r.status) for r in lines] == [
        ("GET", "/v1/skills", 401),
        ("POST", "/v1/skills", 401),
        ("GET", "/nothing", 401),
    ]
    assert "hush-hush" not in caplog.text


def test_lines_are_json_if_asked(capsys):
    logger = logging.getLogger("neuraverse.registry")
    kept = (logger.handlers[:], logger.level, logger.propagate)
    try:
        logs.set_up(Settings.load(log_format="json"))
        logging.getLogger("neuraverse.registry.access").info("one\nline", extra={"status": 200})
        logs.set_up(Settings.load())
        logging.getLogger("neuraverse.registry.access").info("one\nline")
    finally:
        logger.handlers[:], logger.level, logger.propagate = kept
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["status"] == 200
    assert json.loads(first)["message"] == "one\nline"
    assert "one\\nline" in second


def test_an_id_that_could_forge_a_log_is_not_kept(local_api):
    for given in ("a b", "x" * 65, "short", "\x1b[31mred-red"):
        assert local_api.get("/health/live", headers={"X-Request-Id": given}).headers["x-request-id"] != given


@pytest.fixture
def impatient(settings):
    with background(settings.model_copy(update={"body_idle_s": 1.0})) as address:
        yield address


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.storages
def test_fault_12_slow_headers_and_bodies_are_closed_and_others_served(impatient):
    """Hundreds of slow clients; an honest one is served all the while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))  # both ends are here
    slow = [connect(impatient) for _ in range(500)]
    for i, each in enumerate(slow):
        each.sendall(
            b"GET / HT"
            if i % 2
            else b"PUT /v1/blobs/" + b"0" * 64 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
        )
    for _ in range(20):
        assert httpx.get(f"{impatient}/health/live").status_code == 200
    for i, each in enumerate(slow):
        answer = each.recv(4096)
        assert answer == b"" if i % 2 else answer.startswith(b"HTTP/1.1 408 ")
        each.close()
    assert httpx.get(f"{impatient}/health/ready").status_code == 200


def test_headers_without_end(impatient):
    with connect(impatient) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        try:
            for _ in range(200):
                connection.sendall(b"X-Long: " + b"a" * 1000 + b"\r\n")
            answer = connection.recv(4096)
        except OSError:
            return  # closed on us while we were still sending
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_fault_21_a_clock_that_jumps_changes_no_order(
    local_api, make_skill, tmp_path, publisher, monkeypatch
):
    """Times are for people: events, versions and cursors go by their numbers."""
    from neuraverse.registry import publishing

    for i, when in enumerate(("2027-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z")):
        monkeypatch.setattr(publishing, "now", lambda when=when: when)
        skill = make_skill(tmp_path / f"s{i}", version=f"1.{i}.0", seed=i)
        assert local_api.post("/v1/skills", content=parcel(skill, publisher), headers=TAR).status_code == 201
    events = local_api.get("/v1/events?after=0").json()["events"]
    assert [e["version"] for e in events] == ["1.0.0", "1.1.0"]
    assert local_api.get("/v1/skills/acme/weld-seam/latest").json()["version"] == "1.1.0"


def test_fault_11_one_version_comes_whole_while_its_alias_moves(
    local_api, make_skill, tmp_path, publisher, state
):
    """Whoever asks by alias gets one version, never parts of two."""
    skills = [make_skill(tmp_path / f"s{i}", version=f"1.{i}.0", seed=i) for i in range(2)]
    for skill in skills:
        local_api.post("/v1/skills", content=parcel(skill, publisher), headers=TAR)
    state(local_api, "alias", alias="stable", version="1.0.0")
    stop = threading.Event()

    def moving():
        i = 0
        while not stop.is_set():
            i += 1
            state(local_api, "alias", alias="stable", version=f"1.{i % 2}.0")

    thread = threading.Thread(target=moving)
    thread.start()
    try:
        whole = {
            s.digest: local_api.get(f"/v1/skills/acme/weld-seam/{s.version}/archive").content for s in skills
        }
        for _ in range(40):
            answer = local_api.get("/v1/skills/acme/weld-seam/stable/archive")
            assert answer.content == whole[answer.headers["neuraverse-digest"]]
    finally:
        stop.set()
        thread.join()


def test_two_processes_show_one_order(tmp_path, start, postgres, s3, make_skill, publisher):
    """PostgreSQL and S3: what one process takes in, the other's readers hear of at once, in one order."""
    shared = {"database": postgres.new(), "presign": False, **s3.new()}
    skills = [make_skill(tmp_path / f"s{i}", version=f"1.0.{i}", seed=i % 3) for i in range(12)]
    _, first = start(data=tmp_path / "a", **shared)
    _, second = start(data=tmp_path / "b", **shared)
    heard = {first: [], second: []}
    ready = threading.Barrier(3)

    def listen(url):
        with httpx.stream("GET", f"{url}/v1/events/stream?after=0", timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            ready.wait()
            for line in lines:
                if line.startswith("id: ") and not line.endswith("-0"):
                    heard[url].append(line[4:])
                if len(heard[url]) == len(skills):
                    return

    readers = [threading.Thread(target=listen, args=(url,)) for url in heard]
    for reader in readers:
        reader.start()
    ready.wait()

    def write(url, mine):
        for skill in mine:
            content = parcel(skill, publisher)
            assert httpx.post(f"{url}/v1/skills", content=content, headers=TAR, timeout=60).status_code == 201

    writers = [
        threading.Thread(target=write, args=(url, skills[i::2])) for i, url in enumerate((first, second))
    ]
    begun = time.monotonic()
    for thread in (*writers, *readers):
        if not thread.is_alive() and thread in writers:
            thread.start()
    for thread in (*writers, *readers):
        thread.join(60)
    assert time.monotonic() - begun < 14.0  # by notification, not by the next heartbeat
    assert heard[first] == heard[second] == sorted(heard[first])
    assert len(heard[first]) == len(skills)


def test_fault_06_one_version_from_twenty_writers_in_two_processes(
    tmp_path, start, postgres, s3, make_skill, publisher
):
    from concurrent.futures import ThreadPoolExecutor

    shared = {"database": postgres.new(), "presign": False, **s3.new()}
    parcels = [parcel(make_skill(tmp_path / f"s{seed}", seed=seed), publisher) for seed in range(20)]
    urls = [start(data=tmp_path / name, **shared)[1] for name in "ab"]

    def send(i):
        answer = httpx.post(f"{urls[i % 2]}/v1/skills", content=parcels[i], headers=TAR, timeout=60)
        return answer.status_code

    with ThreadPoolExecutor(20) as pool:
        codes = sorted(pool.map(send, range(20)))
    assert codes == [201] + [409] * 19
    assert len(httpx.get(f"{urls[1]}/v1/events?after=0").json()["events"]) == 1


def test_a_database_that_goes_away(tmp_path, postgres, problem):
    """PostgreSQL is lost for a moment: a clear answer meanwhile, and service afterwards."""
    url_of_db = postgres.new()
    name = url_of_db.partition("?")[0].rsplit("/", 1)[-1]
    with background(Settings.load(data=tmp_path / "a", database=url_of_db, collect_hours=0)) as url:
        assert httpx.get(f"{url}/v1/skills").status_code == 200
        postgres.psql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        postgres.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        answer = httpx.get(f"{url}/v1/skills")
        assert answer.status_code == 503
        assert answer.json()["remedy"] == "try again"
        assert httpx.get(f"{url}/health/ready").status_code == 503
        assert httpx.get(f"{url}/health/live").status_code == 200
        postgres.psql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        assert httpx.get(f"{url}/v1/skills").status_code == 200


def test_s3_downloads_go_to_the_store(tmp_path, s3, tiny_skill, publisher):
    with background(Settings.load(data=tmp_path / "a", collect_hours=0, **s3.new())) as url:
        httpx.post(f"{url}/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR, timeout=60)
        entry = tiny_skill.manifest.files["policy.onnx"]
        answer = httpx.get(f"{url}/v1/blobs/{entry.sha256}")
        assert answer.status_code == 307
        assert httpx.get(answer.headers["location"]).content == tiny_skill.read("policy.onnx")
        part = httpx.get(answer.headers["location"], headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, tiny_skill.read("policy.onnx")[5:10])


def test_events_are_only_ever_added(local_api, data_dir, tiny_skill, publisher, state):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    with sqlite3.connect(data_dir / "registry.db") as db:
        before = db.execute("SELECT * FROM events").fetchall()
    state(local_api, "revoke", version="1.0.0")
    with sqlite3.connect(data_dir / "registry.db") as db:
        assert db.execute("SELECT * FROM events").fetchall()[:1] == before
