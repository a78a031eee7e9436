"""Episodes that a control loop counts, and what the registry is told of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neuraverse.client import Measured
from neuraverse.errors import ConflictError, NetworkError, UsageError
from neuraverse.runtime import Outcomes

FIRST, SECOND = (SimpleNamespace(digest=f"sha256:{d}", ref=f"acme/x@{d}.0.0") for d in "12")


class Told:
    """A client that notes reports, after so many failures."""

    def __init__(self, *failures):
        self.reports, self.keys, self._failures = [], [], list(failures)

    def report(self, skill, offer, *, key, **counts):
        self.keys.append(key)
        if self._failures:
            raise self._failures.pop(0)
        self.reports.append((skill.digest, counts))


def test_episodes_are_summed_up_by_skill(offer):
    client = Told()
    outcomes = Outcomes(client, offer, {"lateral": "m", "force": "N"})
    outcomes.add(FIRST, success=True, lateral=0.001)
    outcomes.add(SECOND, success=True)
    outcomes.add(FIRST, success=False, lateral=-0.003)
    outcomes.add(FIRST, success=False, aborted=True)
    assert outcomes.send() == 4
    assert outcomes.send() == 0
    lateral = Measured(unit="m", n=2, mean=pytest.approx(0.002), max=0.003)
    assert client.reports == [
        ("sha256:1", {"episodes": 3, "successes": 1, "aborts": 1, "errors": {"lateral": lateral}}),
        ("sha256:2", {"episodes": 1, "successes": 1, "aborts": 0, "errors": {}}),
    ]


def test_what_could_not_be_told_is_kept_and_what_was_refused_is_not(offer, caplog):
    client = Told(ConflictError("it never ran"), NetworkError("down"))
    outcomes = Outcomes(client, offer)
    for skill in (FIRST, SECOND, SECOND):
        outcomes.add(skill, success=True)
    with pytest.raises(NetworkError):
        outcomes.send()
    assert [record.getMessage() for record in caplog.records] == [
        "1 episodes of acme/x@1.0.0 are not told: it never ran"
    ]
    outcomes.add(SECOND, success=False)
    assert outcomes.send() == 3  # what was on its way, as it was; then what came after
    assert [(counts["episodes"], counts["successes"]) for _, counts in client.reports] == [(2, 2), (1, 0)]
    assert client.keys[1] == client.keys[2]
    assert len(set(client.keys)) == 3


def test_what_comes_after_a_report_without_an_answer_is_kept(offer):
    client = Told(NetworkError("down"), NetworkError("down"))
    outcomes = Outcomes(client, offer)
    outcomes.add(FIRST, success=True)
    outcomes.add(SECOND, success=True)
    for _ in range(2):
        with pytest.raises(NetworkError):
            outcomes.send()
    assert outcomes.send() == 2
    assert [digest for digest, _ in client.reports] == ["sha256:1", "sha256:2"]
    assert len(set(client.keys)) == 2


def test_no_more_is_kept_than_one_report_can_tell(offer):
    client = Told()
    outcomes = Outcomes(client, offer)
    for number in range(10_005):
        outcomes.add(FIRST, success=number >= 5)
    assert outcomes.send() == 10_000
    assert client.reports[0][1]["successes"] == 10_000


def test_what_makes_no_sense_is_told_at_once(offer):
    outcomes = Outcomes(Told(), offer, {"lateral": "m"})
    with pytest.raises(UsageError, match="error depth has no unit"):
        outcomes.add(FIRST, success=True, depth=0.1)
    with pytest.raises(UsageError, match="is no success"):
        outcomes.add(FIRST, success=True, aborted=True)
    assert outcomes.send() == 0
