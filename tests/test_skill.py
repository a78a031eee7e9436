"""A Skill on disk: every way in which one can be wrong ends in an error that names it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import tracemalloc

import numpy as np
import onnx
import pytest
import safetensors.numpy

from neuraverse import storage
from neuraverse.errors import (
    ContentError,
    IntegrityError,
    ManifestError,
    SignatureError,
    StorageError,
    UsageError,
    WeightsError,
)
from neuraverse.manifest import BLOBS, MAX_MANIFEST_BYTES, digest_of
from neuraverse.skill import FILES, MANIFEST, SIGNATURE, Skill, check_safetensors
from neuraverse.trust import verify


def refuse(skill, error, *says):
    with pytest.raises(error) as caught:
        Skill.open(skill.path)
    for part in says:
        assert part in str(caught.value)


def reseal(skill, name, data):
    """Replace one file and the manifest's entry for it, as a publisher who is wrong or hostile would."""
    (skill.path / name).write_bytes(data)
    manifest = json.loads((skill.path / MANIFEST).read_bytes())
    manifest["files"][name] = {"sha256": digest_of(data).removeprefix("sha256:"), "size": len(data)}
    (skill.path / MANIFEST).write_text(json.dumps(manifest))


def test_a_skill_is_a_directory_of_seven_files(tiny_skill):
    assert {p.name for p in tiny_skill.path.iterdir()} == set(FILES)
    assert len(FILES) == 7
    assert tiny_skill.manifest.files.keys() == set(BLOBS)


def test_its_identity_is_the_digest_of_its_manifest(tiny_skill):
    assert tiny_skill.digest == digest_of((tiny_skill.path / MANIFEST).read_bytes())
    assert (tiny_skill.name, tiny_skill.version) == ("acme/weld-seam", "1.0.0")
    assert tiny_skill.ref == "acme/weld-seam@1.0.0"
    assert tiny_skill.ref in repr(tiny_skill)


def test_open_reads_what_write_wrote(tiny_skill):
    again = Skill.open(str(tiny_skill.path))
    assert (again.digest, again.manifest, again.path) == (
        tiny_skill.digest,
        tiny_skill.manifest,
        tiny_skill.path,
    )


def test_the_weights_and_the_policy_come_back(tiny_skill, tiny):
    weights = tiny.weights(seed=0)
    assert tiny_skill.weights().keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(tiny_skill.weights()[name], value)
    action = tiny_skill.policy()({s.name: np.zeros(s.shape) for s in tiny_skill.interface.observation})
    assert action["twist"].shape == (6,)


def test_without_a_signature_it_opens_too(tmp_path, make_skill):
    skill = make_skill(tmp_path / "unsigned", key=None)
    assert not (skill.path / SIGNATURE).exists()
    assert Skill.open(skill.path).digest == skill.digest
    with pytest.raises(IntegrityError, match=r"signature\.json is missing"):
        skill.read(SIGNATURE)


@pytest.mark.parametrize("name", BLOBS)
def test_one_byte_flipped_in_a_listed_file_is_named(tiny_skill, name):
    path = tiny_skill.path / name
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refuse(tiny_skill, IntegrityError, name, "differs")
    path.write_bytes(whole)
    Skill.open(tiny_skill.path)


def test_a_byte_flipped_in_the_manifest_or_the_signature_is_found(tiny_skill, key_store):
    for name in (MANIFEST, SIGNATURE):
        path = tiny_skill.path / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 37):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ContentError) as caught:
                verify(tiny_skill.path, key_store)
            if name == SIGNATURE:
                assert isinstance(caught.value, SignatureError)
        path.write_bytes(whole)
    verify(tiny_skill.path, key_store)


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\n", lambda _: b""])
def test_another_size_is_named(tiny_skill, name, change):
    path = tiny_skill.path / name
    path.write_bytes(change(path.read_bytes()))
    refuse(tiny_skill, IntegrityError, name, "bytes")


@pytest.mark.parametrize("name", [MANIFEST, *BLOBS])
def test_a_missing_file_is_named(tiny_skill, name):
    (tiny_skill.path / name).unlink()
    refuse(tiny_skill, IntegrityError, "lacks", name)


@pytest.mark.parametrize("name", ["extra.py", ".hidden", "Policy.onnx", "policy.onnx.data", "evil\x1b[2J"])
def test_an_extra_file_is_named(tiny_skill, name):
    (tiny_skill.path / name).write_bytes(b"")
    refuse(tiny_skill, IntegrityError, repr(name))


def test_a_folder_inside_is_an_extra_file(tiny_skill):
    (tiny_skill.path / "code").mkdir()
    refuse(tiny_skill, IntegrityError, "'code'")


@pytest.mark.parametrize("name", [MANIFEST, *BLOBS])
def test_a_symbolic_link_is_refused_even_to_the_right_bytes(tiny_skill, name):
    path = tiny_skill.path / name
    path.rename(tiny_skill.path.parent / "elsewhere")
    path.symlink_to(tiny_skill.path.parent / "elsewhere")
    refuse(tiny_skill, IntegrityError, name, "symbolic link")


@pytest.mark.parametrize("name", [MANIFEST, "policy.onnx"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused(tiny_skill, name):
    (tiny_skill.path / name).unlink()
    os.mkfifo(tiny_skill.path / name)
    refuse(tiny_skill, IntegrityError, name, "not a regular file")
    (tiny_skill.path / name).unlink()
    (tiny_skill.path / name).mkdir()
    refuse(tiny_skill, IntegrityError, name, "not a regular file")


def test_an_unknown_key_in_the_manifest_is_named(tiny_skill):
    manifest = json.loads((tiny_skill.path / MANIFEST).read_bytes())
    manifest["trust_me"] = True
    (tiny_skill.path / MANIFEST).write_text(json.dumps(manifest))
    refuse(tiny_skill, ManifestError, "trust_me")


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, *BLOBS])
def test_a_file_of_1_gb_is_not_read(tiny_skill, key_store, name):
    with open(tiny_skill.path / name, "r+b") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(ContentError) as caught:
        verify(tiny_skill.path, key_store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert name in str(caught.value)
    assert peak < 8 * MAX_MANIFEST_BYTES


def test_a_path_that_is_no_skill_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(IntegrityError, match="is not a skill directory"):
            Skill.open(path)
    with pytest.raises(IntegrityError, match=r"lacks manifest\.json"):
        Skill.open(tmp_path)


def spoil(weights, **changes):
    return safetensors.numpy.save(weights | {name: np.float32(value) for name, value in changes.items()})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tiny_skill, tiny, bad):
    reseal(tiny_skill, "model.safetensors", spoil(tiny.weights(), **{"actor.2.bias": [bad] * 6}))
    refuse(tiny_skill, WeightsError, "'actor.2.bias' holds NaN or infinity")


def test_weights_of_another_count_are_refused(tiny_skill, tiny):
    weights = tiny.weights()
    del weights["critic.2.bias"]
    reseal(tiny_skill, "model.safetensors", safetensors.numpy.save(weights))
    total = tiny_skill.manifest.network.parameters
    refuse(tiny_skill, WeightsError, f"holds {total - 1} numbers; the manifest says {total}")


def test_weights_of_another_shape_are_refused(tiny_skill, tiny):
    weights = tiny.weights()
    weights["actor.2.weight"] = weights["actor.2.weight"].T.copy()  # (8, 6) where (6, 8) is due
    reseal(tiny_skill, "model.safetensors", safetensors.numpy.save(weights))
    refuse(tiny_skill, WeightsError, "no layer of shape (6, 8)", "24 × 8 × 8 × 6")


@pytest.mark.parametrize("data", [pickle.dumps({"w": [1.0] * 9}), b"PK\x03\x04" + bytes(99)])
def test_a_pickle_renamed_is_called_one(tiny_skill, data):
    reseal(tiny_skill, "model.safetensors", data)
    refuse(tiny_skill, WeightsError, "model.safetensors is a pickle or torch.save file")


def test_a_graph_that_is_not_finite_is_refused(tiny_skill, tiny):
    weights = tiny.weights()
    weights["actor.0.weight"][0, 0] = np.nan
    reseal(tiny_skill, "policy.onnx", tiny.onnx(weights))
    refuse(tiny_skill, WeightsError, "policy.onnx", "actor.0.weight", "NaN")


def test_a_graph_for_other_signals_is_refused(tiny_skill, tiny):
    model = onnx.load_from_string(tiny.onnx(tiny.weights()))
    for node in model.graph.node:
        node.input[:] = ["e_turn" if name == "e_rot" else name for name in node.input]
    model.graph.input[1].name = "e_turn"
    reseal(tiny_skill, "policy.onnx", model.SerializeToString())
    refuse(tiny_skill, WeightsError, "policy.onnx has no input e_rot")


def test_a_graph_with_data_elsewhere_is_refused(tiny_skill, tiny):
    model = onnx.load_from_string(tiny.onnx(tiny.weights()))
    model.graph.initializer[0].external_data.add(key="location", value="../../secret")
    reseal(tiny_skill, "policy.onnx", model.SerializeToString())
    refuse(tiny_skill, WeightsError, "policy.onnx", "lies in another file")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("evaluation.json", b"{", "JSON"),
        ("curve.json", b"\xff", "JSON"),
        ("curve.json", b"[" * 10_000, "JSON"),
        ("curve.json", b"[" * 100_000, "more than 65536"),
        ("README.md", b"\xff", "UTF-8"),
    ],
)
def test_text_that_is_none_is_refused(tiny_skill, name, data, says):
    reseal(tiny_skill, name, data)
    refuse(tiny_skill, IntegrityError, name, says)


def test_a_file_that_changes_after_opening_is_not_used(tiny_skill, tiny):
    (tiny_skill.path / "policy.onnx").write_bytes(tiny.onnx(tiny.weights(seed=1)))
    (tiny_skill.path / MANIFEST).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"policy\.onnx differs"):
        tiny_skill.policy()
    with pytest.raises(IntegrityError, match=r"manifest\.json has changed"):
        tiny_skill.read(MANIFEST)


def test_read_knows_the_files_of_a_skill_only(tiny_skill):
    for name in FILES:
        assert tiny_skill.read(name) == (tiny_skill.path / name).read_bytes()
    with pytest.raises(UsageError, match="no file of a skill"):
        tiny_skill.read("../secret")


def test_writing_never_replaces_a_skill(tmp_path, make_skill):
    first = make_skill(tmp_path / "skill")
    with pytest.raises(UsageError, match="exists already"):
        make_skill(tmp_path / "skill", seed=1)
    assert Skill.open(tmp_path / "skill").digest == first.digest


def test_writing_makes_the_folders_above(tmp_path, make_skill):
    assert make_skill(tmp_path / "runs" / "today" / "skill").path.is_dir()


@pytest.mark.parametrize("change", [lambda f: f.pop("curve.json"), lambda f: f.update({"model.pkl": b""})])
def test_writing_takes_exactly_the_files_of_a_skill(tmp_path, tiny, change):
    weights = tiny.weights()
    files = tiny.files(weights)
    change(files)
    with pytest.raises(UsageError, match=r"curve\.json|model\.pkl"):
        Skill.write(tmp_path / "skill", tiny.manifest(weights), files)
    assert list(tmp_path.iterdir()) == []


def test_writing_checks_the_content_first(tmp_path, tiny):
    weights = tiny.weights()
    files = tiny.files(weights) | {"model.safetensors": spoil(weights, **{"actor.0.bias": [np.nan] * 8})}
    with pytest.raises(WeightsError, match="NaN"):
        Skill.write(tmp_path / "skill", tiny.manifest(weights), files)
    with pytest.raises(UsageError, match=r"files=\{\}"):
        Skill.write(tmp_path / "skill", make_filled(tiny), tiny.files(weights))
    assert list(tmp_path.iterdir()) == []


def make_filled(tiny):
    return tiny.manifest(tiny.weights(), files={"README.md": {"sha256": "0" * 64, "size": 1}})


@pytest.mark.parametrize("after", range(0, 11))
def test_a_full_disk_leaves_nothing_half_written(tmp_path, make_skill, monkeypatch, after):
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    with pytest.raises(StorageError, match="No space left") as caught:
        make_skill(tmp_path / "skill")
    assert len(calls) > after
    assert "free some space" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_signing_leaves_nothing(tmp_path, tiny):
    def interrupted(_folder):
        raise KeyboardInterrupt

    weights = tiny.weights()
    with pytest.raises(KeyboardInterrupt):
        Skill.write(tmp_path / "skill", tiny.manifest(weights), tiny.files(weights), sign=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_the_same_skill(tmp_path, tiny_skill, key_store):
    shutil.copytree(tiny_skill.path, tmp_path / "copy")
    assert Skill.open(tmp_path / "copy").digest == tiny_skill.digest
    verify(tmp_path / "copy", key_store)


def test_check_safetensors_takes_bytes_or_a_path(tiny_skill, tmp_path):
    path = tiny_skill.path / "model.safetensors"
    assert check_safetensors(path) == check_safetensors(path.read_bytes()) == check_safetensors(str(path))
    with pytest.raises(IntegrityError, match="missing"):
        check_safetensors(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        check_safetensors(tmp_path / "bad.safetensors")


def test_a_skill_of_the_usual_size_is_small(tmp_path, tiny):
    weights = tiny.weights(hidden=(64, 64))
    skill = Skill.write(tmp_path / "skill", tiny.manifest(weights), tiny.files(weights))
    assert sum(p.stat().st_size for p in skill.path.iterdir()) < 100_000
