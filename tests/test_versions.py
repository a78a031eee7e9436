from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraverse.errors import UsageError
from neuraverse.manifest import VERSION_PATTERN, version_key
from neuraverse.versions import is_prerelease, order_key, parse_range

versions = st.from_regex(VERSION_PATTERN, fullmatch=True).filter(lambda v: len(v) <= 64)
close = st.builds(
    "{}.{}.{}{}".format,
    *(st.sampled_from(["0", "1", "9", "10"]),) * 3,
    st.sampled_from(["", "-a", "-a.1", "-a.b", "-1", "-2", "-10", "-a-", "-a.10", "-A", "-1a", "-rc"]),
)


@given(versions | close, versions | close)
def test_text_order_is_the_precedence_of_versions(a, b):
    assert (order_key(a) < order_key(b)) == (version_key(a) < version_key(b))
    assert (order_key(a) == order_key(b)) == (version_key(a) == version_key(b))


def test_the_example_of_semver_org():
    ordered = (
        "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0"
    )
    assert sorted(reversed(ordered.split()), key=order_key) == ordered.split()


@pytest.mark.parametrize(("version", "expected"), [("1.0.0", False), ("1.0.0-rc.1", True), ("0.0.0-0", True)])
def test_prerelease(version, expected):
    assert re.fullmatch(VERSION_PATTERN, version)
    assert is_prerelease(version) is expected


def in_range(text):
    return parse_range(text).allows


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("^1.2.3", "1.2.3 1.2.10 1.9.0", "1.2.2 2.0.0 0.9.0 1.3.0-rc.1 2.0.0-rc.1"),
        ("^1.2", "1.2.0 1.9.9", "1.1.9 2.0.0"),
        ("^1", "1.0.0 1.9.9", "0.9.9 2.0.0 1.0.0-rc.1"),
        ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3.0 1.0.0"),
        ("^0.0.3", "0.0.3", "0.0.2 0.0.4 0.1.0"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^0", "0.0.0 0.9.9", "1.0.0"),
        ("^0.0.0", "0.0.0", "0.0.1"),
        ("^1.2.3-rc.1", "1.2.3-rc.1 1.2.3-rc.2 1.2.3 1.3.0", "1.2.3-beta 1.3.0-rc.1 2.0.0"),
        ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
        ("~1.2", "1.2.0 1.2.9", "1.1.9 1.3.0"),
        ("~1", "1.0.0 1.9.0", "0.9.0 2.0.0"),
        ("~1.2.3-rc.1", "1.2.3-rc.1 1.2.3 1.2.4", "1.2.4-rc.1 1.3.0"),
        (">=1.2 <2", "1.2.0 1.9.9", "1.1.9 2.0.0 2.0.0-rc.1"),
        (">=1.2,<2", "1.2.0 1.9.9", "1.1.9 2.0.0"),
        (">= 1.2 , < 2", "1.2.0 1.9.9", "1.1.9 2.0.0"),
        (">1.2", "1.3.0 2.0.0", "1.2.0 1.2.9"),
        (">1.2.3", "1.2.4", "1.2.3"),
        ("<=1.2", "1.2.9 0.1.0", "1.3.0"),
        ("<=1.2.3", "1.2.3", "1.2.4"),
        ("<1.2", "1.1.9 0.0.0", "1.2.0 1.2.0-rc.1"),
        ("<2.0.0-rc.2", "1.9.0 2.0.0-rc.1", "2.0.0-rc.2 2.0.0 1.9.0-rc.1"),
        ("1.2", "1.2.0 1.2.9", "1.1.0 1.3.0"),
        ("1.2.*", "1.2.0 1.2.9", "1.1.0 1.3.0"),
        ("1.*", "1.0.0 1.9.9", "0.9.0 2.0.0"),
        ("=1.2.3", "1.2.3", "1.2.2 1.2.4 1.2.3-rc.1"),
        ("1.2.3-rc.1", "1.2.3-rc.1", "1.2.3 1.2.3-rc.2"),
        ("*", "0.0.0 1.2.3 99.0.0", "1.0.0-rc.1"),
        (">*", "", "0.0.0 1.0.0"),
        ("<*", "", "0.0.0 1.0.0"),
        ("^1 ^2", "", "1.0.0 2.0.0"),
    ],
)
def test_ranges(text, inside, outside):
    assert {v: in_range(text)(v) for v in inside.split()} == dict.fromkeys(inside.split(), True)
    assert {v: in_range(text)(v) for v in outside.split()} == dict.fromkeys(outside.split(), False)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            ",",
            "latest",
            "^",
            ">=",
            "1.2.3.4",
            "01.2",
            "^v1",
            "1.x",
            "1-",
            "^1.2-rc",
            "1.*-rc",
            "*.1",
        ),
        *("1.*.1", "^^1", "=>1", "1 || 2", "1.2.3 - 2.0.0", "^1.2.3-", "^1.2.3-01", "^1.2.3+build", "1" * 10),
        *("^1 " * 50, "١.2.3", "^1\n;", "!=1"),
    ],
)
def test_what_is_no_range(text):
    with pytest.raises(UsageError, match="is no range of versions"):
        parse_range(text)


small = st.integers(0, 3)
releases = st.tuples(small, small, small)


def text_of(numbers):
    return ".".join(map(str, numbers))


@given(releases, releases)
def test_caret_and_tilde_by_the_book(low, other):
    """The definition with plain tuples: the same up to and including the first number that is not zero."""
    first = next((i for i, n in enumerate(low) if n), 2)
    caret = other >= low and other[: first + 1] == low[: first + 1]
    assert in_range(f"^{text_of(low)}")(text_of(other)) is caret
    assert in_range(f"~{text_of(low)}")(text_of(other)) is (other >= low and other[:2] == low[:2])


@given(releases, releases, st.sampled_from([">=", ">", "<", "<=", "="]))
def test_comparisons_are_those_of_versions(bound, other, how):
    compare = {">=": "__ge__", ">": "__gt__", "<": "__lt__", "<=": "__le__", "=": "__eq__"}[how]
    assert in_range(f"{how}{text_of(bound)}")(text_of(other)) is getattr(other, compare)(bound)


@given(versions | close)
def test_every_version_is_the_range_of_itself(version):
    assert in_range(f"={version}")(version)
    assert in_range(f">={version}")(version)
    assert not in_range(f">{version}")(version)
    assert in_range(f"^{version}")(version)
    assert in_range(f"~{version}")(version)


@given(st.lists(st.sampled_from(["^1", "~1.2", ">=1.1", "<2", "1.2.*", "*", "<=1.3"]), min_size=1), releases)
def test_all_comparisons_must_hold(parts, numbers):
    version = text_of(numbers)
    assert in_range(" ".join(parts))(version) is all(in_range(part)(version) for part in parts)


@given(st.text(max_size=200))
def test_any_text_is_a_range_or_refused(text):
    try:
        found = parse_range(text)
    except UsageError:
        return
    assert isinstance(found.allows("1.2.3"), bool)
