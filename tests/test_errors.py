"""The tree of errors: every class is drawn, survives a process border, and says what to do."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest

from neuraverse import errors
from neuraverse.errors import (
    ContentError,
    IncompatibleError,
    MissingExtraError,
    NetworkError,
    NeuraverseError,
    UnknownNameError,
    UsageError,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_every_class_is_public_and_drawn_in_the_tree():
    defined = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, NeuraverseError)}
    assert defined == set(errors.__all__)
    for name in errors.__all__:
        assert name in errors.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_exit_code_is_2_for_wrong_usage_and_1_for_the_rest(cls):
    assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1)


def test_network_and_content_are_different_families():
    assert not issubclass(NetworkError, ContentError)
    assert not issubclass(ContentError, NetworkError)


@pytest.mark.parametrize(
    "error",
    [
        *(
            c("what is wrong", remedy="what to do")
            for c in CLASSES
            if c not in (UnknownNameError, MissingExtraError)
        ),
        UnknownNameError("robot", "pandda", ["panda", "ur5e"]),
        MissingExtraError("torch", "train", "training"),
        IncompatibleError("no", problems=["rate", "reach"], remedy="buy a faster robot"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_survives_a_process_border(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert (copy.message, copy.remedy) == (error.message, error.remedy)
    assert getattr(copy, "problems", None) == getattr(error, "problems", None)


def test_message_and_remedy_are_joined():
    assert (
        str(NeuraverseError("the disk is full", remedy="free some space"))
        == "the disk is full - free some space"
    )
    assert str(NeuraverseError("the disk is full")) == "the disk is full"


def test_an_unknown_name_is_answered_with_the_near_ones():
    error = UnknownNameError("robot", "pandda", ["ur5e", "panda", "iiwa14"])
    assert "'pandda'" in error.message
    assert "did you mean panda?" in error.remedy
    assert "iiwa14, panda, ur5e" in error.remedy


@pytest.mark.parametrize(
    ("known", "remedy"), [([], "there are none yet"), (["a1", "b2"], "there are: a1, b2")]
)
def test_an_unknown_name_without_a_near_one_lists_all(known, remedy):
    assert UnknownNameError("robot", "zzzzzz", known).remedy == remedy


def test_a_missing_extra_names_one_that_exists():
    error = MissingExtraError("torch", "train", "`neuraverse train`")
    assert "'torch'" in error.message
    assert error.remedy == "pip install 'neuraverse[train]'"
    project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text())
    assert "train" in project["project"]["optional-dependencies"]


def test_problems_are_part_of_the_message():
    error = IncompatibleError("it does not fit", problems=["rate: 50 Hz", "reach: 1 m"])
    assert str(error) == "it does not fit: rate: 50 Hz; reach: 1 m"
