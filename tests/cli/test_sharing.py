"""Keys, publish, alias, search, show, watch, pull and verify, against a real registry."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from neuraverse.skill import FILES, MANIFEST, SIGNATURE, Skill
from neuraverse.trust import KeyStore, verify
from tests.conftest import INTERFACE


@pytest.fixture
def published(neuraverse, home, url, tmp_path, make_skill):
    """acme/weld-seam 1.0.0 and its child me/weld-slow 0.1.0, published and alias 'stable' set."""
    parent = make_skill(tmp_path / "parent")
    child = make_skill(
        tmp_path / "child", org="me", name="weld-slow", version="0.1.0", parents=(parent.digest,)
    )
    for skill in (parent, child):
        neuraverse("publish", skill.path)
    neuraverse("alias", "set", "acme/weld-seam", "stable", "1.0.0")
    return parent, child


def test_keys_are_made_trusted_and_listed(neuraverse, as_json, fresh_home, publisher, tmp_path):
    assert as_json("keys", "list") == []
    made = as_json("keys", "new")
    assert made["name"] == "default"
    assert made["public"] == str(fresh_home / "keys" / "default" / "public.pem")
    assert "there is a key named 'default' already" in neuraverse("keys", "new", code=2).error
    pem = tmp_path / "acme.pem"
    pem.write_bytes(publisher.public_key().pem)
    assert "acme" in neuraverse("keys", "trust", pem, "--org", "acme").stdout
    assert as_json("keys", "list") == [
        {"name": "default", "org": None, "fingerprint": made["fingerprint"]},
        {"name": None, "org": "acme", "fingerprint": publisher.public_key().fingerprint},
    ]
    assert "trusted for its skills" in neuraverse("keys", "list").stdout
    assert "no name for an organisation" in neuraverse("keys", "trust", pem, "--org", "A B", code=2).error
    assert (
        "nowhere.pem" in neuraverse("keys", "trust", tmp_path / "nowhere.pem", "--org", "acme", code=2).error
    )
    private = fresh_home / "keys" / "default" / "private.pem"
    assert "private key" in neuraverse("keys", "trust", private, "--org", "acme", code=2).error


def test_publish_search_show(neuraverse, as_json, published):
    parent, child = published
    assert {s["name"] for s in as_json("search")} == {"acme/weld-seam", "me/weld-slow"}
    assert [s["name"] for s in as_json("list", "slow")] == ["me/weld-slow"]
    assert "95.0%" in neuraverse("search", "weld").stdout
    assert "matches" in neuraverse("search", "juggling").stdout
    shown = as_json("show", "me/weld-slow")
    assert shown["digest"] == child.digest
    assert shown["manifest"]["parents"] == [parent.digest]
    assert shown["ancestors"] == [
        {
            "skill": "acme/weld-seam@1.0.0",
            "digest": parent.digest,
            "success": {"rate": 0.95, "lower": parent.manifest.evaluation.lower, "n": 100},
        }
    ]
    assert as_json("show", "acme/weld-seam@stable")["children"] == [child.digest]
    said = neuraverse("show", child.path).stdout
    for word in ("me/weld-slow@0.1.0", child.digest, parent.digest, "e_pos", "servo 8 Hz", "1,000 steps"):
        assert word in said


def test_publishing_twice_is_the_same_and_another_version_is_not(neuraverse, published, tmp_path, make_skill):
    parent, _ = published
    neuraverse("publish", parent.path)
    other = make_skill(tmp_path / "other", seed=1)
    assert "1.0.0" in neuraverse("publish", other.path, code=1).error
    assert "no key named 'mine'" in neuraverse("publish", other.path, "--key", "mine", code=2).error
    assert "is not a skill directory" in neuraverse("publish", tmp_path / "nowhere", code=1).error


def test_unknown_names_are_answered_with_near_ones(neuraverse, published):
    for command in ("pull", "show", "verify", "run", "eval", "fine-tune"):
        error = neuraverse(command, "acme/weld-seem", code=2).error
        assert "there is no skill named 'acme/weld-seem' - did you mean acme/weld-seam" in error
    assert "no version or alias '9.9.9'" in neuraverse("pull", "acme/weld-seam@9.9.9", code=1).error
    assert "9.9.9" in neuraverse("alias", "set", "acme/weld-seam", "stable", "9.9.9", code=1).error
    assert "names no skill" in neuraverse("pull", "weld seam", code=2).error
    assert "is not ORG/SKILL" in neuraverse("watch", "acme/weld-seam@1.0.0", code=2).error


def test_pull_prints_the_folder_and_needs_trust(
    neuraverse, as_json, published, tmp_path, monkeypatch, publisher
):
    parent, _ = published
    monkeypatch.setenv("NEURAVERSE_HOME", str(tmp_path / "robot"))
    error = neuraverse("pull", "acme/weld-seam", code=1).error
    assert "not trusted for acme" in error
    assert "neuraverse keys trust PUBLIC.pem --org acme" in error
    KeyStore().trust(publisher.public_key().pem, "acme")
    pulled = as_json("pull", "acme/weld-seam@stable")
    assert pulled["digest"] == parent.digest
    assert sorted(os.listdir(pulled["path"])) == sorted(FILES)
    assert as_json("pull", parent.digest) == pulled
    assert pulled["path"] in neuraverse("pull", parent.digest).stdout
    assert as_json("verify", "acme/weld-seam")["signed_by"] == publisher.public_key().fingerprint


def test_search_by_facets_and_by_what_a_robot_can_run(neuraverse, as_json, published, tiny, tmp_path):
    assert [s["name"] for s in as_json("search", "--org", "me", "--tag", "welding")] == ["me/weld-slow"]
    assert as_json("search", "--success", "0.99") == []
    said = neuraverse("search", "--license", "MIT").stdout
    assert "matches" in said
    shown = neuraverse("search", "--limit", "1")
    assert "there are more: --limit N" in shown.stderr
    assert "88.8% in simulation" in shown.stdout
    assert as_json("search", "--runs-on", "ur5e") == []
    twist = INTERFACE.action[0]
    interface = dataclasses.replace(INTERFACE, observation=INTERFACE.observation[:3], action=(twist,))
    weights = tiny.weights(0, (8, 8), interface)
    manifest = tiny.manifest(weights, interface, name="acme/reach")
    skill = Skill.write(tmp_path / "reach", manifest, tiny.files(weights, interface))
    neuraverse("publish", skill.path)
    assert [s["name"] for s in as_json("search", "--runs-on", "ur5e")] == ["acme/reach"]
    assert as_json("search", "weld-slow", "--runs-on", "ur5e") == []
    assert "did you mean ur5e" in neuraverse("search", "--runs-on", "ur5", code=2).error
    assert "--runs-on" in neuraverse("search", "--env", "x", code=2).error


def test_pull_for_a_robot_refuses_what_does_not_fit(neuraverse, published):
    error = neuraverse("pull", "acme/weld-seam", "--robot", "ur5e", code=1).error
    assert "acme/weld-seam@1.0.0 does not fit ur5e" in error
    assert "observation seam: ur5e does not have it" in error
    assert "does not fit ur5e" in neuraverse("pull", published[0].path, "--robot", "ur5e", code=1).error
    error = neuraverse("pull", "acme/weld-seam", "--robot", "ur5", code=2).error
    assert "there is no robot named 'ur5' - did you mean ur5e" in error
    assert "--robot" in neuraverse("pull", "acme/weld-seam", "--tool", "hand", code=2).error


@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_leaves_no_half_of_a_skill(
    neuraverse, as_json, published, tmp_path, monkeypatch, publisher, late
):
    """The disk says so when a file is written, or only when it is flushed."""
    monkeypatch.setenv("NEURAVERSE_HOME", str(tmp_path / "robot"))
    KeyStore().trust(publisher.public_key().pem, "acme")
    fsync, write_bytes = os.fsync, Path.write_bytes

    def flush(handle):
        if "robot" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    def write(path, data):
        if "robot" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush) if late else patch.setattr(Path, "write_bytes", write)
        error = neuraverse("pull", "acme/weld-seam", code=1).error
    assert "No space left on device - free some space" in error
    cache = tmp_path / "robot" / "cache"
    for path in (cache / "skills").glob("*"):
        assert late
        verify(path)
    assert list(cache.rglob("*.tmp")) == []
    assert as_json("pull", "acme/weld-seam")["skill"] == "acme/weld-seam@1.0.0"


def test_watch_tells_what_happens(process, published):
    parent, _ = published
    child = process("watch", "acme/weld-seam", "--after", "0", "--json")
    events = [json.loads(child.stdout.readline()) for _ in range(2)]
    assert [(e["type"], e["version"], e["digest"]) for e in events] == [
        ("published", "1.0.0", parent.digest),
        ("alias", "1.0.0", parent.digest),
    ]
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, "")
    assert said == "interrupted; run the same command again to go on\n"
    words = process("watch", "--after", "0")
    assert "published acme/weld-seam@1.0.0" in words.stdout.readline()


def test_verify_says_that_a_skill_is_good(neuraverse, as_json, home, tiny_skill, publisher, monkeypatch):
    assert "acme/weld-seam@1.0.0 is good" in neuraverse("verify", tiny_skill.path).stdout
    said = as_json("verify", tiny_skill.path)
    assert said == {
        "ok": True,
        "skill": "acme/weld-seam@1.0.0",
        "digest": tiny_skill.digest,
        "signed_by": publisher.public_key().fingerprint,
    }
    monkeypatch.chdir(tiny_skill.path.parent)
    neuraverse("verify", tiny_skill.path.name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_verify_finds_one_flipped_byte_in_any_file(neuraverse, home, tiny_skill, name, place):
    path = tiny_skill.path / name
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x01
    path.chmod(0o644)
    path.write_bytes(data)
    error = neuraverse("verify", tiny_skill.path, code=1).error
    if name == MANIFEST:
        assert "manifest.json" in error or "signature" in error or "differs" in error or "signed" in error
    elif name == SIGNATURE:
        assert "sign" in error
    else:
        assert name in error


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_a_missing_file(neuraverse, as_json, home, tiny_skill, name):
    (tiny_skill.path / name).unlink()
    assert name in neuraverse("verify", tiny_skill.path, code=1).error
    assert as_json("verify", tiny_skill.path, code=1)["ok"] is False


def test_verify_finds_what_does_not_belong(neuraverse, home, tiny_skill, tmp_path, make_skill, fresh_home):
    (tiny_skill.path / "run.sh").write_text("rm -rf /")
    assert "'run.sh'" in neuraverse("verify", tiny_skill.path, code=1).error
    assert "is not a skill directory" in neuraverse("verify", tmp_path / "nowhere", code=1).error
    shutil.rmtree(tiny_skill.path)
    with (make_skill(tiny_skill.path).path / MANIFEST).open("ab") as file:
        file.truncate(1 << 30)
    error = neuraverse("verify", tiny_skill.path, code=1).error
    assert "1073741824 bytes; at most 1048576 are allowed" in error


def test_verify_refuses_an_unknown_key_and_no_key(neuraverse, fresh_home, tiny_skill, tmp_path, make_skill):
    assert "not trusted for acme" in neuraverse("verify", tiny_skill.path, code=1).error
    unsigned = make_skill(tmp_path / "unsigned", key=None)
    error = neuraverse("verify", unsigned.path, code=1).error
    assert "has no usable signature" in error
