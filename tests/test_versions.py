from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraverse.manifest import VERSION_PATTERN, version_key
from neuraverse.versions import is_prerelease, order_key

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
