"""A control loop that runs what a link points to."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from neuraverse.errors import IntegrityError, UsageError
from neuraverse.runtime import Linked, linked, run
from neuraverse.storage import put_link, remove_link
from tests.servers import until


@pytest.fixture
def installed(make_skill, tmp_path):
    """Two skills in folders of their digests, as the cache has them."""
    found = []
    for number in (1, 2):
        skill = make_skill(tmp_path / "made", version=f"{number}.0.0", seed=number)
        folder = tmp_path / "cache" / skill.digest.removeprefix("sha256:")
        folder.parent.mkdir(exist_ok=True)
        skill.path.rename(folder)
        skill.path = folder
        found.append(skill)
    return found


@pytest.fixture
def link(installed, tmp_path):
    """A link to the first of them."""
    put_link(tmp_path / "skills" / "acme" / "weld-seam", installed[0].path)
    return tmp_path / "skills" / "acme" / "weld-seam"


def test_it_runs_what_the_link_points_to(link, installed, observation):
    first, second = installed
    holder = Linked(link)
    assert not holder.wait(0.0)
    with holder:
        assert holder.wait(20)
        expected = first.policy()(observation)["twist"]
        assert np.array_equal(holder.step(observation | {"wrench": np.zeros(6)})["twist"], expected)
        put_link(link, second.path)
        until(lambda: holder.skill.digest == second.digest)
        remove_link(link)
        until(lambda: holder.skill is None)
        with pytest.raises(UsageError, match="points to no skill any more"):
            holder.step(observation)
        put_link(link, first.path)
        assert holder.wait(20)
    assert holder.skill.digest == first.digest


def test_it_waits_for_a_link(tmp_path, installed):
    with Linked(tmp_path / "not" / "yet") as holder:
        assert not holder.wait(0.1)
        put_link(tmp_path / "not" / "yet", installed[0].path)
        assert holder.wait(20)


@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx"])
def test_what_has_changed_since_it_was_checked_is_not_run(link, installed, monkeypatch, caplog, name):
    monkeypatch.setattr(linked, "_AGAIN_S", 0.05)
    first, second = installed
    path = second.path / name
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good.replace(b"0", b"1", 1))
    with pytest.raises(IntegrityError):
        linked.load(second.path)
    with Linked(link) as holder:
        assert holder.wait(20)
        put_link(link, second.path)
        until(lambda: caplog.records)
        assert holder.skill.digest == first.digest
        path.write_bytes(good)
        until(lambda: holder.skill.digest == second.digest)


def test_a_loop_runs_on_while_the_link_changes(link, installed, observation):
    stop, actions = threading.Event(), []

    class Cell:
        def observe(self):
            return observation

        def apply(self, action):
            actions.append(action["twist"].tobytes())

    known = {s.policy()(observation)["twist"].tobytes(): s.version for s in installed}
    with Linked(link) as holder:
        assert holder.wait(20)
        loop = threading.Thread(target=run, args=(holder, Cell(), 200.0), kwargs={"stop": stop})
        loop.start()
        for skill in (installed[1], installed[0], installed[1]):
            put_link(link, skill.path)
            until(lambda version=skill.version: actions and known.get(actions[-1]) == version)
        stop.set()
        loop.join()
    assert set(actions) == set(known)
    assert os.readlink(link) == str(installed[1].path)
