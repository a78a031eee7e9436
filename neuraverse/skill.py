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

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from neuraverse.errors import IntegrityError, UsageError, WeightsError
from neuraverse.graph import check_graph
from neuraverse.interface import Interface
from neuraverse.manifest import BLOBS, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileEntry, SkillManifest, digest_of
from neuraverse.policy import Policy, output_name
from neuraverse.storage import disk_errors, hash_regular, new_folder, read_regular
from neuraverse.tensors import Checker, check_tensors, read_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
FILES = (MANIFEST, *BLOBS, SIGNATURE)
MAX_SIGNATURE_BYTES = 64 << 10
MAX_TEXT_BYTES = 16 << 20
_LARGE_BYTES = 16 << 20  # above it, two threads check a skill
MAX_JSON_BYTES, MAX_JSON_PARTS = 1 << 20, 1 << 16
"""Of a JSON file, and of objects and lists in it; parsed, it takes less than 50 MB of memory."""


class Skill:
    """A checked skill directory. Make one with `Skill.write`, read one with `Skill.open`.

    Attributes:
        path: The directory.
        manifest: What it says of itself.
        digest: ``sha256:<hex>`` of manifest.json, the identity.
    """

    def __init__(self, path: Path, manifest_bytes: bytes, manifest: SkillManifest | None = None) -> None:
        self.path = path
        self.manifest = manifest or SkillManifest.parse(manifest_bytes)
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
    def open(
        cls,
        path: Path | str,
        *,
        admit: Callable[[Self], object] | None = None,
        keep: dict[str, bytes] | None = None,
    ) -> Self:
        """Read a skill and check all of it, except who signed it (`neuraverse.trust.verify` does).

        Nothing of it is run; `policy` does that.

        Args:
            path: The directory.
            admit: Called with the manifest, before any other file is read; what it raises ends the opening.
                The place for the question who signed it: a signature covers the digests in the manifest.
            keep: Gets the content of each file but signature.json, for who needs it next.

        Raises:
            ManifestError: manifest.json does not follow the schema.
            IntegrityError: A file is missing, too many, of another size or digest, or no regular file.
            WeightsError: The weights or the graph are malformed, not finite, or do not fit the manifest.
            StorageError: The disk failed.
        """
        path = Path(path)
        _check_names(path)
        data = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
        skill = cls(path, data)
        if admit is not None:
            admit(skill)
        if keep is None and sum(entry.size for entry in skill.manifest.files.values()) > _LARGE_BYTES:
            with ThreadPoolExecutor(2, "check") as pool:
                list(pool.map(skill._check, BLOBS))
            return skill
        for name in BLOBS:
            content = skill._content(name)
            check_blob(name, content, skill.manifest)
            if keep is not None:
                keep[name] = content
        if keep is not None:
            keep[MANIFEST] = data
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
        Policy.load(files["policy.onnx"], manifest.interface)
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
        return self._content(name)

    def _content(self, name: str) -> bytes:
        """One of `BLOBS`."""
        data = read_regular(self.path / name, MAX_FILE_BYTES)
        self._compare(name, len(data), hashlib.sha256(data).hexdigest())
        return data

    def _check(self, name: str) -> None:
        """One of `BLOBS`; weights are checked as they are read."""
        if name != "model.safetensors":
            check_blob(name, self._content(name), self.manifest)
            return
        size = self.manifest.files[name].size  # type: ignore[index]
        checker, wrong = Checker(size), list[WeightsError]()

        def look(piece: memoryview) -> None:
            if not wrong:
                try:
                    checker.feed(piece)
                except WeightsError as error:
                    wrong.append(error)  # told once the bytes are known to be those that were signed

        self._compare(name, *hash_regular(self.path / name, MAX_FILE_BYTES, look))
        for error in wrong:
            raise error
        _check_weights(checker.finish(), self.manifest)

    def _compare(self, name: str, size: int, sha256: str) -> None:
        entry = self.manifest.files[name]  # type: ignore[index]
        if size != entry.size:
            raise IntegrityError(
                f"{name} has {size} bytes, not {entry.size} as its manifest says",
                remedy="pull the skill again",
            )
        if sha256 != entry.sha256:
            raise IntegrityError(
                f"{name} differs from what its manifest says: its SHA-256 is not {entry.sha256[:12]}…",
                remedy="pull the skill again",
            )

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


def check_blob(name: str, data: Buffer, manifest: SkillManifest) -> None:
    """Check the content of one of `BLOBS`; its digest is not looked at, and nothing is run.

    Raises:
        WeightsError: Weights or a graph that are malformed, not finite, or do not fit the manifest.
        IntegrityError: JSON or Markdown that is none, or too large.
    """
    if name == "model.safetensors":
        _check_weights(check_tensors(data), manifest)
    elif name == "policy.onnx":
        interface = manifest.interface
        check_graph(
            data,
            inputs={signal.name: signal.shape for signal in interface.observation},
            outputs={output_name(signal.name): signal.shape for signal in interface.action},
        )
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


def _check_text(name: str, data: Buffer) -> None:
    most = MAX_JSON_BYTES if name.endswith(".json") else MAX_TEXT_BYTES
    with memoryview(data).cast("B") as view:
        if len(view) > most:
            raise IntegrityError(f"{name} has {len(view)} bytes; at most {most} are allowed")
        plain = bytes(view)
    try:
        text = plain.decode()
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
