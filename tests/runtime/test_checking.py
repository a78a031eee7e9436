"""Commands that judge a skill, and how they may misbehave."""

from __future__ import annotations

import threading
import time

import pytest

from neuraverse.errors import IncompatibleError
from neuraverse.runtime.checking import check


def judge(text, folder, timeout_s=20.0, stop=None):
    check("the probe", ["/bin/sh", "-c", text, "sh"], folder, timeout_s, stop or threading.Event())


def test_a_command_gets_the_folder_and_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURAVERSE_TOKEN", "nvt_secret")
    judge('test "$1" = "$NEURAVERSE_SKILL" && test -d "$1" && test -z "$NEURAVERSE_TOKEN"', tmp_path)
    with pytest.raises(IncompatibleError):
        judge('test -n "$NEURAVERSE_TOKEN"', tmp_path)


@pytest.mark.parametrize(
    ("text", "timeout_s", "said"),
    [
        ("exit 3", 20.0, "the probe failed (exit code 3)"),
        ("echo one; echo two; echo; exit 3", 20.0, "the probe failed (exit code 3): two"),
        ("echo loud >&2; exit 1", 20.0, "the probe failed (exit code 1): loud"),
        ("kill -9 $$", 20.0, "the probe failed (SIGKILL)"),
        ("read line && exit 0; exit 4", 20.0, "the probe failed (exit code 4)"),
        ("printf 'a\\033[31mred\\n'; exit 1", 20.0, "the probe failed (exit code 1): a [31mred"),
        ("yes xxxxxxxxxx | head -c 1000 | tr -d '\\n'; exit 1", 20.0, "x" * 150),
        ("sleep 60", 0.2, "the probe did not end within 0.2 s"),
        ("yes", 0.2, "the probe did not end within 0.2 s: y"),
        ("trap '' TERM INT; sleep 60", 0.2, "did not end"),
        ("sleep 60 & exit 5", 20.0, "the probe failed (exit code 5)"),
    ],
)
def test_commands_that_do_not_approve(tmp_path, text, timeout_s, said):
    begun = time.monotonic()
    with pytest.raises(IncompatibleError) as caught:
        judge(text, tmp_path, timeout_s)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - begun < 15.0


def test_nothing_that_it_started_lives_on(tmp_path):
    """What it leaves in the background is ended with it, whether it approved or not."""
    for ending in ("exit 0", "exit 1"):
        done = tmp_path / "done"
        try:
            judge(f"(sleep 0.5; touch {done}) & {ending}", tmp_path)
        except IncompatibleError:
            assert ending == "exit 1"
        time.sleep(0.7)
        assert not done.exists()


def test_it_ends_when_it_is_told_to(tmp_path):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(IncompatibleError, match="was interrupted"):
        judge("sleep 60", tmp_path, stop=stop)
    assert time.monotonic() - begun < 10.0
