"""Checkpoints: one safetensors file, tensors and a JSON note, written whole or not at all. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from neuraverse.errors import IntegrityError
from neuraverse.storage import disk_errors, write_atomic

CHECKPOINT = "checkpoint.safetensors"
_NOTE = "neuraverse"


def save(folder: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder`.

    Raises:
        StorageError: The disk is full, read-only or gone; the last checkpoint is still there.
    """
    with disk_errors("create", folder):
        folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(note, allow_nan=False)
    write_atomic(folder / CHECKPOINT, safetensors.torch.save(plain, metadata={_NOTE: text}))


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and note of the checkpoint in `folder`, or None if there is none yet.

    Raises:
        IntegrityError: The file is no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})[_NOTE])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise IntegrityError(
            f"{path} is no checkpoint: {error}", remedy="remove it to start the run anew"
        ) from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with ``prefix.`` before each name."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}
