"""Publish and pull against a live registry: the whole way, and everything that may go wrong on it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from neuraverse.client import Client, Resolved, pull, pulling
from neuraverse.errors import (
    ConflictError,
    ContentError,
    IncompatibleError,
    IntegrityError,
    ManifestError,
    NetworkError,
    NotFoundError,
    SignatureError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from neuraverse.skill import FILES
from neuraverse.trust import KeyStore

NAME = "acme/weld-seam"


@pytest.fixture(autouse=True)
def file_by_file(monkeypatch):
    """As a large skill is pulled; `test_archive` pulls small ones."""
    monkeypatch.setattr(pulling, "ARCHIVE_BYTES", 0)


@pytest.fixture
def published(author, tiny_skill):
    author.publish(tiny_skill.path)
    return tiny_skill


def cached_files(home):
    """Everything in the cache, relative to it."""
    root = home / "cache"
    return sorted(
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and p.parent.name not in ("refs", "locks")
    )


def blobs_asked(meddler):
    return [r for r in meddler.requests if r.url.path.startswith("/v1/blobs/")]


def weights_of(skill):
    return skill.manifest.files["model.safetensors"].sha256


# --- the whole way


def test_publish_and_pull(author, robot, tiny_skill, offer):
    steps = []
    done = author.publish(tiny_skill.path, progress=lambda *step: steps.append(step))
    total = sum(e.size for e in tiny_skill.manifest.files.values())
    assert done == Resolved(name=NAME, version="1.0.0", digest=tiny_skill.digest)
    assert done.ref == f"{NAME}@1.0.0"
    assert steps[-1] == (total, total)
    steps.clear()
    skill = robot.pull(NAME, offer=offer, progress=lambda *step: steps.append(step))
    assert skill.digest == tiny_skill.digest
    assert steps == sorted(steps)
    assert steps[-1] == (total, total)
    for name in FILES:
        assert (skill.path / name).read_bytes() == (tiny_skill.path / name).read_bytes()
    assert skill.path == robot.home / "cache" / "skills" / skill.digest.removeprefix("sha256:")
    assert not list((robot.home / "cache" / "partial").iterdir())


def test_every_kind_of_reference(author, robot, published, make_skill, tmp_path):
    author.publish(make_skill(tmp_path / "next", version="1.1.0", seed=1).path)
    author.set_alias(NAME, "stable", "1.0.0")
    for ref in (f"{NAME}@1.0.0", f"{NAME}@stable", published.digest, str(published.path)):
        assert robot.pull(ref).digest == published.digest
    assert robot.pull(NAME).version == robot.pull(f"{NAME}@latest").version == "1.1.0"
    assert [s.version for s in robot.search("seam")] == ["1.1.0"]
    assert robot.search("nothing of the kind") == []


def test_the_module_function(author, published, url, key_store, monkeypatch):
    monkeypatch.setenv("NEURAVERSE_REGISTRY", url)
    monkeypatch.setenv("NEURAVERSE_HOME", str(key_store.home))
    assert pull(NAME).digest == published.digest


def test_a_second_pull_asks_for_no_file(published, through, net):
    client, meddler = through(lambda _, response: response)
    client.pull(NAME)
    asked = len(blobs_asked(meddler))
    assert client.pull(NAME).digest == published.digest
    assert len(blobs_asked(meddler)) == asked == 5


def test_a_child_brings_only_what_changed(author, published, through, make_skill, tmp_path):
    client, meddler = through(lambda _, response: response)
    client.pull(NAME)
    child = make_skill(tmp_path / "child", version="1.1.0", seed=1, parents=[published.digest])
    author.publish(child.path)
    before = len(blobs_asked(meddler))
    client.pull(NAME)
    old = {e.sha256 for e in published.manifest.files.values()}
    new = {e.sha256 for e in child.manifest.files.values()} - old
    assert len(new) < 5
    assert {r.url.path.rpartition("/")[2] for r in blobs_asked(meddler)[before:]} == new


def test_a_digest_in_the_cache_needs_no_registry(published, robot):
    robot.pull(NAME)
    with Client("http://127.0.0.1:9", home=robot.home) as offline:
        assert offline.pull(published.digest).digest == published.digest
        with pytest.raises(NetworkError):
            offline.pull(NAME)


# --- publishing


def test_publishing_again_uploads_nothing(author, published, url, publisher):
    sent = []
    with httpx.Client(event_hooks={"request": [lambda r: sent.append(r.method)]}) as http:
        assert Client(url, home=publisher.home, http=http).publish(published.path).digest == published.digest
    assert "PUT" not in sent


def test_a_taken_version(author, published, make_skill, tmp_path):
    other = make_skill(tmp_path / "other", seed=1)
    with pytest.raises(ConflictError, match="never reused"):
        author.publish(other.path)


def test_an_unsigned_skill_is_signed_on_the_way(author, robot, make_skill, tmp_path):
    skill = make_skill(tmp_path / "unsigned", key=None)
    author.publish(skill.path)
    assert robot.pull(NAME).digest == skill.digest


def test_a_skill_of_someone_else_cannot_be_published(url, tiny_skill, tmp_path):
    store = KeyStore(tmp_path / "other")
    store.new("mine")
    with Client(url, home=store.home) as client:
        with pytest.raises(SignatureError, match="is not signed by your key 'mine'"):
            client.publish(tiny_skill.path, key="mine")
        with pytest.raises(UnknownNameError, match="no key named 'default'"):
            client.publish(tiny_skill.path)


def test_a_damaged_skill_is_not_uploaded(author, robot, tiny_skill):
    path = tiny_skill.path / "model.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ContentError, match=r"model\.safetensors"):
        author.publish(tiny_skill.path)
    with pytest.raises(NotFoundError):
        robot.resolve(NAME)


def test_aliases_that_cannot_be(author, published):
    with pytest.raises(NotFoundError, match=r"9\.9\.9"):
        author.set_alias(NAME, "stable", "9.9.9")
    with pytest.raises(ConflictError, match="derived"):
        author.set_alias(NAME, "latest", "1.0.0")
    with pytest.raises(UsageError):
        author.set_alias("../x", "stable", "1.0.0")


# --- refusals before a weight is read


def test_unknown_names(robot, published):
    for ref in ("acme/other", f"{NAME}@2.0.0", f"{NAME}@stable", "sha256:" + "0" * 64):
        with pytest.raises(NotFoundError):
            robot.pull(ref)


def test_a_key_that_nobody_trusts(url, published, tmp_path):
    with Client(url, home=tmp_path / "naive") as client:
        with pytest.raises(SignatureError, match="not trusted for acme - if you know the publisher"):
            client.pull(NAME)
        assert cached_files(client.home) == []


def test_trust_that_is_withdrawn_counts_for_the_cache_too(robot, published, tmp_path):
    robot.pull(NAME)
    with pytest.raises(SignatureError):
        robot.pull(NAME, trust=KeyStore(tmp_path / "empty"))
    with pytest.raises(SignatureError):
        robot.pull(str(published.path), trust=KeyStore(tmp_path / "empty"))


def test_a_robot_that_the_skill_does_not_fit(published, through, offer):
    client, meddler = through(lambda _, response: response)
    weak = dataclasses.replace(offer, robot="shorty", reach_m=0.2, max_rate_hz=10.0)
    with pytest.raises(IncompatibleError) as caught:
        client.pull(NAME, offer=weak)
    assert "does not fit shorty" in caught.value.message
    assert len(caught.value.problems) == 2
    assert blobs_asked(meddler) == []
    assert client.pull(NAME, offer=offer)
    for ref in (NAME, str(published.path)):
        with pytest.raises(IncompatibleError):
            client.pull(ref, offer=weak)


# --- a registry that lies


def lie(net, ending, content, **headers):
    """Answer every path with this ending with other bytes."""

    def meddle(request, response):
        if not request.url.path.endswith(ending):
            return response
        made = content(response) if callable(content) else content
        return net.replaced(response, made, 200, **headers)

    return meddle


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 1])
def test_other_bytes_for_the_manifest(published, through, net, size):
    client, meddler = through(lie(net, published.digest[7:], b"x" * size))
    with pytest.raises(
        (IntegrityError, NetworkError), match=r"digest|more than 1048576 bytes for a manifest"
    ):
        client.pull(NAME)
    assert blobs_asked(meddler) == []
    assert cached_files(client.home) == []


def test_a_manifest_without_end(published, through, net):
    taken = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            nonlocal taken
            while True:
                taken += 65536
                yield b" " * 65536

    def meddle(request, response):
        if "/manifests/" not in request.url.path:
            return response
        response.close()
        return httpx.Response(200, stream=Endless())

    client, _ = through(meddle)
    with pytest.raises(NetworkError, match="more than 1048576 bytes for a manifest"):
        client.pull(NAME)
    assert taken < 2 << 20


def test_another_digest_than_was_asked_for(published, through, net):
    answer = {"name": NAME, "version": "1.0.0", "digest": "sha256:../../etc"}
    client, _ = through(
        lie(net, "/latest", json.dumps(answer).encode(), **{"content-type": "application/json"})
    )
    with pytest.raises(NetworkError, match="is no digest"):
        client.resolve(NAME)


@pytest.mark.parametrize(("name", "version"), [(NAME, "1.0.0"), ("acme/other", "1.0.0"), (NAME, "2.0.0")])
def test_another_skill_than_was_asked_for(
    author, published, through, net, make_skill, tmp_path, name, version
):
    """A trusted publisher's other skill or older version may not stand in for the one that was named."""
    other = make_skill(tmp_path / "grind", name="grind", seed=1)
    author.publish(other.path)
    answer = {"name": name, "version": version, "digest": other.digest}
    client, _ = through(
        lie(net, "/1.0.0", json.dumps(answer).encode(), **{"content-type": "application/json"})
    )
    with pytest.raises(IntegrityError, match=r"the registry answered .* with"):
        client.pull(client.resolve(f"{NAME}@1.0.0"))
    assert cached_files(client.home) == []


def test_a_signature_of_another_skill(author, published, through, net, make_skill, tmp_path):
    other = make_skill(tmp_path / "other", version="1.1.0", seed=1)
    client, _ = through(lie(net, "/signature", other.read("signature.json")))
    with pytest.raises(SignatureError):
        client.pull(NAME)
    client, _ = through(lie(net, "/signature", b"x" * 100_000))
    with pytest.raises(NetworkError, match="for a signature"):
        client.pull(NAME)


def test_a_manifest_that_follows_no_schema(published, through, net):
    from neuraverse.manifest import digest_of

    data = b'{"name": "acme/weld-seam"}\n'
    answer = {"name": NAME, "version": "1.0.0", "digest": digest_of(data)}

    def meddle(request, response):
        if request.url.path.endswith("/latest"):
            return net.replaced(response, json.dumps(answer).encode())
        if request.url.path.endswith(digest_of(data)[7:]):
            return net.replaced(response, data, 200)
        return response

    client, _ = through(meddle)
    with pytest.raises((ManifestError, IntegrityError, NotFoundError)):
        client.pull(client.resolve(NAME))


def test_a_flipped_bit_in_a_file(published, through, net):
    def flip(response):
        data = bytearray(b"".join(response.stream))
        data[10] ^= 1
        return bytes(data)

    client, _ = through(lie(net, weights_of(published), flip))
    with pytest.raises(IntegrityError, match=f"for the blob {weights_of(published)}"):
        client.pull(NAME)
    assert cached_files(client.home) == []


def test_a_file_without_end(published, through, net):
    client, _ = through(lie(net, weights_of(published), b"x" * 10_000_000))
    with pytest.raises(IntegrityError, match="sends more than the"):
        client.pull(NAME)
    assert cached_files(client.home) == []


def test_a_file_that_is_missing_there(published, through, net):
    def meddle(request, response):
        if request.url.path.endswith(weights_of(published)):
            body = json.dumps({"detail": "no such blob", "remedy": ""}).encode()
            return net.replaced(response, body, 404, **{"content-type": "application/problem+json"})
        return response

    client, _ = through(meddle)
    with pytest.raises(NotFoundError, match="no such blob"):
        client.pull(NAME)


# --- a network that breaks


def test_a_cut_download_goes_on_where_it_was(published, through, net):
    """Each answer for the weights breaks after 1,000 bytes; nothing is sent twice."""

    def meddle(request, response):
        return net.cut(response, 1000) if request.url.path.endswith(weights_of(published)) else response

    client, meddler = through(meddle)
    assert client.pull(NAME).digest == published.digest
    asked = [r for r in blobs_asked(meddler) if r.url.path.endswith(weights_of(published))]
    size = published.manifest.files["model.safetensors"].size
    assert [r.headers.get("range") for r in asked] == [
        None,
        *(f"bytes={n}-" for n in range(1000, size, 1000)),
    ]
    assert not any("if-range" in r.headers for r in asked)  # whoever sends the rest may have tags of its own


def test_a_pull_that_gave_up_goes_on_later(published, through, net, robot):
    allowed = [1500]

    def meddle(request, response):
        if request.url.path.endswith(weights_of(published)):
            response = net.cut(response, allowed[0])
            allowed[0] = 0
        return response

    client, _ = through(meddle)
    with pytest.raises(NetworkError, match=r"1500 of 3\d\d\d bytes\) - run it again: it goes on from there"):
        client.pull(NAME)
    partial = robot.home / "cache" / "partial" / weights_of(published)
    assert partial.stat().st_size == 1500
    later, meddler = through(lambda _, response: response)
    assert later.pull(NAME).digest == published.digest
    assert blobs_asked(meddler)[0].headers["range"] == "bytes=1500-"


def test_a_pull_that_ended_between_download_and_name_goes_on_later(published, robot, monkeypatch):
    real = os.replace

    def interrupted(source, target):
        if "partial" in str(source):
            mode = os.stat(source).st_mode
            assert mode & 0o200, "who is not root could never open it again"
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            robot.pull(NAME)
    skill = robot.pull(NAME)
    assert skill.digest == published.digest
    assert not (skill.path / "policy.onnx").stat().st_mode & 0o222


def test_a_spoilt_partial_file_costs_one_more_try(published, robot):
    partial = robot.home / "cache" / "partial"
    partial.mkdir(parents=True)
    for content in (b"x" * 1000, b"x" * 100_000):
        (partial / weights_of(published)).write_bytes(content)
        assert robot.pull(NAME).digest == published.digest
        for path in (robot.home / "cache").rglob("*"):
            if path.is_file():
                path.unlink()
        for folder in (robot.home / "cache" / "skills").iterdir():
            folder.rmdir()


@pytest.mark.parametrize("headers", [{}, {"content-range": "bytes 0-9/10"}, {"content-range": "nonsense"}])
def test_a_server_that_ignores_ranges(published, through, net, headers):
    first = [True]

    def meddle(request, response):
        if not request.url.path.endswith(weights_of(published)):
            return response
        if first.pop() if first else False:
            return net.cut(response, 1000)
        if "range" in request.headers and (headers or not first):
            whole = published.read("model.safetensors")
            return net.replaced(response, whole, 206 if headers else 200, **headers)
        return response

    client, _ = through(meddle)
    assert client.pull(NAME).digest == published.digest


# --- a disk that fails


def test_a_full_disk(published, robot, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if len(data) > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"No space left on device - free some space"):
        robot.pull(NAME)
    monkeypatch.undo()
    assert not [f for f in cached_files(robot.home) if f.startswith(("skills", "partial"))]
    assert robot.pull(NAME).digest == published.digest


def test_a_cache_that_cannot_be(published, url, key_store):
    (key_store.home / "cache").write_text("a file where a folder should be")
    with Client(url, home=key_store.home) as client, pytest.raises(StorageError, match="cannot write"):
        client.pull(NAME)


@pytest.mark.parametrize("name", [f for f in FILES])
def test_a_flipped_bit_in_the_cache_is_mended(published, robot, name):
    """Through the hard link, the flip spoils the blob as well."""
    path = robot.pull(NAME).path / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = robot.pull(NAME)
    assert (again.path / name).read_bytes() == (published.path / name).read_bytes()


def test_a_file_lost_from_the_cache_is_fetched_again(published, robot):
    skill = robot.pull(NAME)
    (skill.path / "policy.onnx").unlink()
    assert robot.pull(NAME).read("policy.onnx") == published.read("policy.onnx")
    assert len(list((robot.home / "cache" / "skills").iterdir())) == 1


# --- several at once


def test_threads_that_pull_the_same(published, through):
    client, meddler = through(lambda _, response: response)
    with ThreadPoolExecutor(8) as pool:
        skills = list(pool.map(lambda _: client.pull(NAME), range(8)))
    assert {s.path for s in skills} == {skills[0].path}
    assert len(blobs_asked(meddler)) == 5  # one of them downloaded, the others waited
    assert not list((client.home / "cache" / "partial").iterdir())


PULL = (
    "import sys; from neuraverse.client import Client, pulling; pulling.ARCHIVE_BYTES = 0\n"
    "print(Client(sys.argv[1]).pull(sys.argv[2]).digest)"
)


def start_pull(url, home):
    return subprocess.Popen(
        [sys.executable, "-c", PULL, url, NAME],
        env=os.environ | {"NEURAVERSE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_pull_the_same(published, url, key_store):
    running = [start_pull(url, key_store.home) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (out.strip(), process.returncode) == (published.digest, 0), err


def test_sigkill_in_a_pull(published, url, key_store, robot):
    """A proxy holds the weights back after 1,200 bytes; the process that waits for them is killed."""
    import http.server

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with httpx.stream("GET", url + self.path) as answer:
                body = b"".join(answer.iter_raw())
                self.send_response(answer.status_code)
                for name in ("content-type", "content-length", "neuraverse-digest"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.end_headers()
            if self.path.endswith(weights_of(published)):
                self.wfile.write(body[:1200])
                self.wfile.flush()
                released.wait(60)
            else:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    released = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        process = start_pull(f"http://127.0.0.1:{proxy.server_address[1]}", key_store.home)
        partial = key_store.home / "cache" / "partial" / weights_of(published)
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size == 1200):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        released.set()
        proxy.shutdown()
    assert not (key_store.home / "cache" / "skills").exists()
    assert robot.pull(NAME).digest == published.digest


def test_an_alias_that_moves_during_a_pull(author, published, through, make_skill, tmp_path):
    """What was resolved first is what comes, whole."""
    second = make_skill(tmp_path / "second", version="1.1.0", seed=1)
    author.publish(second.path)
    author.set_alias(NAME, "stable", "1.0.0")

    def meddle(request, response):
        if request.url.path.endswith("/stable/archive"):
            content = response.read()
            author.set_alias(NAME, "stable", "1.1.0")
            return httpx.Response(200, headers=response.headers, stream=httpx.ByteStream(content))
        return response

    client, _ = through(meddle)
    assert client.pull(f"{NAME}@stable").digest == published.digest
    assert client.resolve(f"{NAME}@stable").digest == second.digest
