"""The tree of errors. Each message says what is wrong and, after a dash, what to do next.

    NeuraverseError
    ├── UsageError            the call or the command is wrong                          (exit 2)
    │   ├── UnknownNameError  no such skill, robot, environment, …; lists the near names
    │   ├── ConfigError       a recipe, a setting or a robot file has a wrong field
    │   └── MissingExtraError an optional part of the installation is needed
    ├── ContentError          what was read is wrong: it must not be used               (exit 1)
    │   ├── ManifestError     manifest.json does not follow the schema
    │   ├── IntegrityError    a digest, a size or the set of files differs
    │   ├── SignatureError    unsigned, badly signed, or signed by a key nobody trusts
    │   ├── WeightsError      weights or ONNX that are malformed, not finite, or misshapen
    │   └── ModelError        an MJCF that is no usable robot
    ├── IncompatibleError     a skill and a robot do not fit each other                 (exit 1)
    ├── ObservationError      an observation or action does not fit the interface       (exit 1)
    ├── RegistryError         the registry answered, and said no                        (exit 1)
    │   ├── NotFoundError     it has no such thing
    │   ├── RevokedError      its publisher took it back: stop using it
    │   └── ConflictError     the name and version are taken by other bytes
    ├── NetworkError          the registry could not be asked; asking again may work    (exit 1)
    ├── StorageError          a disk is full, read-only or gone                         (exit 1)
    └── TrainingError         learning or a worker failed                               (exit 1)

"The network failed" and "the content is wrong" are different families on purpose: the first is worth a
retry, the second never is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "ConflictError",
    "ContentError",
    "IncompatibleError",
    "IntegrityError",
    "ManifestError",
    "MissingExtraError",
    "ModelError",
    "NetworkError",
    "NeuraverseError",
    "NotFoundError",
    "ObservationError",
    "RegistryError",
    "RevokedError",
    "SignatureError",
    "StorageError",
    "TrainingError",
    "UnknownNameError",
    "UsageError",
    "WeightsError",
]


class NeuraverseError(Exception):
    """Root of every error this package raises on purpose.

    Args:
        message: What is wrong, naming the input.
        remedy: What the reader can do about it, as a clause; empty if there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} - {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a process border (Ray, multiprocessing) with message and remedy intact."""
        return _rebuild, (type(self), self.message, self.remedy)


def _rebuild(cls: type[NeuraverseError], message: str, remedy: str) -> NeuraverseError:
    error = cls.__new__(cls)
    NeuraverseError.__init__(error, message, remedy=remedy)
    return error


class UsageError(NeuraverseError):
    """The call or the command is wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that does not exist, answered with those that do.

    Args:
        kind: What sort of thing was named, such as ``"robot"``.
        name: The name that was given.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            remedy = f"did you mean {' or '.join(near)}? There are: {', '.join(names[:20])}"
        elif names:
            remedy = f"there are: {', '.join(names[:20])}"
        else:
            remedy = "there are none yet"
        super().__init__(f"there is no {kind} named {name!r}", remedy=remedy)


class ConfigError(UsageError):
    """A recipe, a setting or a robot file has a wrong field, type or range."""


class MissingExtraError(UsageError):
    """A part of the installation that this call needs is missing.

    Args:
        package: The module that could not be imported.
        extra: The extra of this package that installs it.
        what: What needs it, such as ``"neuraverse train"``.
    """

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed",
            remedy=f"pip install 'neuraverse[{extra}]'",
        )


class ContentError(NeuraverseError):
    """What was read is wrong and must not be used. A retry will not help."""


class ManifestError(ContentError):
    """manifest.json does not follow the schema."""


class IntegrityError(ContentError):
    """A digest or size differs, or a file is missing or too many."""


class SignatureError(ContentError):
    """Unsigned, badly signed, or signed by a key that is not trusted for this name."""


class WeightsError(ContentError):
    """Weights or an ONNX graph that are malformed, not finite, or do not fit the interface."""


class ModelError(ContentError):
    """An MJCF that is no usable robot."""


class IncompatibleError(NeuraverseError):
    """A skill and a robot do not fit each other; ``problems`` lists each reason."""

    def __init__(self, message: str, *, problems: Iterable[str] = (), remedy: str = "") -> None:
        self.problems = tuple(problems)
        if self.problems:
            message = f"{message}: {'; '.join(self.problems)}"
        super().__init__(message, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the problems across a process border."""
        return _rebuild_incompatible, (self.message, self.remedy, self.problems)


def _rebuild_incompatible(message: str, remedy: str, problems: tuple[str, ...]) -> IncompatibleError:
    error = IncompatibleError(message, remedy=remedy)
    error.problems = problems
    return error


class ObservationError(NeuraverseError):
    """An observation is missing, extra, misshapen or not finite; nothing was run on it."""


class RegistryError(NeuraverseError):
    """The registry answered, and refused."""


class NotFoundError(RegistryError):
    """The registry has no such skill, version, alias or blob."""


class RevokedError(RegistryError):
    """The skill was revoked by its publisher; whoever runs it must leave it."""


class ConflictError(RegistryError):
    """The name and version are taken by other bytes; a version is never reused."""


class NetworkError(NeuraverseError):
    """The registry could not be asked, or did not answer as one. Asking again may work."""


class StorageError(NeuraverseError):
    """A disk is full, read-only or gone; nothing half-written was left."""


class TrainingError(NeuraverseError):
    """Learning diverged, or a worker process failed more often than allowed."""
