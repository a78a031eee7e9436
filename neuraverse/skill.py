"""A Skill on disk: an immutable directory whose identity is the SHA-256 of its manifest.

    manifest.json       what it is; lists every file below with SHA-256 and size
    model.safetensors   all weights: actor, critic, normaliser, exploration
    policy.onnx         the policy as a robot runs it, self-contained
    evaluation.json     the evaluation, episode by episode or in sum
    curve.json          the learning curve
    README.md           the model card
    signature.json      OpenSSF model-signing bundle over all of the above; not listed in the manifest

Opening a skill reads and checks every byte. What fails is an error that names the file; nothing is mended.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from neuraverse.errors import IntegrityError, UsageError, WeightsError
from neuraverse.interface import Interface
from neuraverse.manifest import BLOBS, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileEntry, SkillManifest, digest_of
from neuraverse.policy import Policy
from neuraverse.storage import disk_errors, new_folder, read_hashed, read_regular
from neuraverse.tensors import check_tensors, read_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
FILES = (MANIFEST, *BLOBS, SIGNATURE)
MAX_SIGNATURE_BYTES = 64 << 10
MAX_TEXT_BYTES = 16 << 20
MAX_JSON_BYTES, MAX_JSON_PARTS = 1 << 20, 1 << 16
"""Of a JSON file, and of objects and lists in it; parsed, it takes less than 50 MB of memory."""


class Skill:
    """A checked skill directory. Make one with `Skill.write`, read one with `Skill.open`.

    Attributes:
        path: The directory.
        manifest: What it says of itself.
        digest: ``sha256:<hex>`` of manifest.json, the identity.
    """

    def __init__(self, path: Path, manifest_bytes: bytes) -> None:
        self.path = path
        self.manifest = SkillManifest.parse(manifest_bytes)
        self.digest = digest_of(manifest_bytes)

    def __repr__(self) -> str:
        return f"Skill({self.ref!r}, {self.digest[:19]!r})"

    @property
    def name(self) -> str:
        """``org/skill``."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Semantic version."""
        return self.manifest.version

    @property
    def ref(self) -> str:
        """``org/skill@version``."""
        return self.manifest.ref

    @property
    def interface(self) -> Interface:
        """What it reads and commands."""
        return self.manifest.interface

    @classmethod
    def open(cls, path: Path | str, *, admit: Callable[[Self], object] | None = None) -> Self:
        """Read a skill and check all of it, except who signed it (`neuraverse.trust.verify` does).

        Args:
            path: The directory.
            admit: Called with the manifest, before any other file is read; what it raises ends the opening.
                The place for the question who signed it: a signature covers the digests in the manifest.

        Raises:
            ManifestError: manifest.json does not follow the schema.
            IntegrityError: A file is missing, too many, of another size or digest, or no regular file.
            WeightsError: The weights or the graph are malformed, not finite, or do not fit the manifest.
            StorageError: The disk failed.
        """
        path = Path(path)
        _check_names(path)
        skill = cls(path, read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
        if admit is not None:
            admit(skill)
        for name in BLOBS:
            check_blob(name, skill._content(name), skill.manifest)
        return skill

    @classmethod
    def write(
        cls,
        path: Path | str,
        manifest: SkillManifest,
        files: Mapping[str, bytes],
        *,
        sign: Callable[[Path], object] | None = None,
    ) -> Self:
        """Write a new skill directory: whole, checked, or not at all.

        Args:
            path: Where; must not exist.
            manifest: The description with ``files={}``; the digests are filled in here.
            files: The bytes of each of `BLOBS`, by name.
            sign: Called with the folder before it appears at `path`, to add the signature.

        Raises:
            UsageError: The path exists, or `files` is not exactly the files of a skill.
            WeightsError: The weights or the graph are malformed, not finite, or do not fit the manifest.
            IntegrityError: A file is too large or not text where text is due.
            StorageError: The disk is full, read-only or gone.
        """
        path = Path(path)
        wrong = sorted(set(files) ^ set(BLOBS))
        if wrong:
            raise UsageError(
                f"a skill has the files {', '.join(BLOBS)}; missing or too many: {', '.join(wrong)}"
            )
        if manifest.files:
            raise UsageError("the manifest lists files already", remedy="pass it with files={}")
        for name in BLOBS:
            check_blob(name, files[name], manifest)
        entries = {
            name: FileEntry(sha256=digest_of(files[name]).removeprefix("sha256:"), size=len(files[name]))
            for name in BLOBS
        }
        manifest_bytes = manifest.model_copy(update={"files": entries}).to_bytes()
        SkillManifest.parse(manifest_bytes)
        with new_folder(path) as folder:
            with disk_errors("write", path):
                for name in BLOBS:
                    (folder / name).write_bytes(files[name])
                (folder / MANIFEST).write_bytes(manifest_bytes)
            if sign is not None:
                sign(folder)
        return cls(path, manifest_bytes)

    def read(self, name: str) -> bytes:
        """The bytes of one file of `FILES`, checked again against the manifest.

        Raises:
            UsageError: A skill has no such file.
            IntegrityError: It is missing or has changed.
            StorageError: The disk failed.
        """
        if name == SIGNATURE:
            return read_regular(self.path / SIGNATURE, MAX_SIGNATURE_BYTES)
        if name == MANIFEST:
            data = read_regular(self.path / MANIFEST, MAX_MANIFEST_BYTES)
            if digest_of(data) != self.digest:
                raise IntegrityError(f"{self.path / MANIFEST} has changed since it was opened")
            return data
        if name not in BLOBS:
            raise UsageError(f"{name!r} is no file of a skill", remedy=f"there are {', '.join(FILES)}")
        return bytes(self._content(name))

    def _content(self, name: str) -> bytearray:
        """One of `BLOBS`, in one pass over the disk."""
        entry = self.manifest.files[name]  # type: ignore[index]
        data, sha256 = read_hashed(self.path / name, MAX_FILE_BYTES)
        if len(data) != entry.size:
            raise IntegrityError(f"{name} has {len(data)} bytes, not {entry.size} as its manifest says")
        if sha256 != entry.sha256:
            raise IntegrityError(
                f"{name} differs from what its manifest says: its SHA-256 is not {entry.sha256[:12]}…",
                remedy="pull the skill again",
            )
        return data

    def policy(self) -> Policy:
        """The policy as a robot runs it.

        Raises:
            WeightsError: The graph does not fit the interface.
            IntegrityError: policy.onnx has changed.
        """
        return Policy.load(self.read("policy.onnx"), self.interface)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Every tensor of model.safetensors by name."""
        return read_tensors(self.read("model.safetensors"))


def check_safetensors(source: bytes | Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, given as bytes or by its path, after checking it.

    Raises:
        WeightsError: Malformed, or not finite.
        IntegrityError: The file is missing or too large.
    """
    if isinstance(source, bytes):
        return check_tensors(source)
    path = Path(source)
    return check_tensors(read_regular(path, MAX_FILE_BYTES), path.name)


def check_blob(name: str, data: bytes | bytearray, manifest: SkillManifest) -> None:
    """Check the content of one of `BLOBS`; its digest is not looked at.

    Raises:
        WeightsError: Weights or a graph that are malformed, not finite, or do not fit the manifest.
        IntegrityError: JSON or Markdown that is none, or too large.
    """
    if name == "model.safetensors":
        _check_weights(check_tensors(data), manifest)
    elif name == "policy.onnx":
        Policy.load(bytes(data), manifest.interface)
    else:
        _check_text(name, data)


def _check_weights(shapes: dict[str, tuple[int, ...]], manifest: SkillManifest) -> None:
    network, interface = manifest.network, manifest.interface
    total = sum(math.prod(shape) for shape in shapes.values())
    if total != network.parameters:
        raise WeightsError(f"model.safetensors holds {total} numbers; the manifest says {network.parameters}")
    sizes = (interface.observation_size, *network.hidden, interface.action_size)
    for fan_in, fan_out in itertools.pairwise(sizes):
        if (fan_out, fan_in) not in shapes.values():
            raise WeightsError(
                f"model.safetensors has no layer of shape {(fan_out, fan_in)}, "
                f"which a network of {' × '.join(map(str, sizes))} needs"
            )


def _check_text(name: str, data: bytes | bytearray) -> None:
    most = MAX_JSON_BYTES if name.endswith(".json") else MAX_TEXT_BYTES
    if len(data) > most:
        raise IntegrityError(f"{name} has {len(data)} bytes; at most {most} are allowed")
    try:
        text = data.decode()
        if name.endswith(".json"):
            if text.count("[") + text.count("{") > MAX_JSON_PARTS:
                raise IntegrityError(f"{name} has more than {MAX_JSON_PARTS} objects and lists")
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{name} is not valid {'JSON' if name.endswith('.json') else 'UTF-8'}: {error}"
        ) from error


def _check_names(path: Path) -> None:
    if not path.is_dir():
        raise IntegrityError(
            f"{path} is not a skill directory", remedy=f"name a folder that holds {MANIFEST}"
        )
    with disk_errors("read", path):
        found = {entry.name for entry in path.iterdir()}
    missing = [name for name in FILES if name not in found and name != SIGNATURE]
    if missing:
        raise IntegrityError(f"{path} lacks {', '.join(missing)}")
    extra = sorted(found - set(FILES))
    if extra:
        raise IntegrityError(f"{path} holds {', '.join(map(repr, extra[:5]))}, which is no file of a skill")
