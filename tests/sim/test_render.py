"""Pictures without a screen, and the sentence where there can be none."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuraverse.errors import MissingExtraError, NeuraverseError, StorageError, UnknownNameError
from neuraverse.sim.physics import Physics
from neuraverse.sim.render import Line, Renderer, View, render_frames, save_gif, save_png
from neuraverse.sim.robot import Robot


@pytest.fixture(scope="module")
def panda():
    return Robot.load("panda")


@pytest.fixture(scope="module")
def renderer(panda):
    model = panda.spec().compile()
    try:
        renderer = Renderer(model, width=160, height=120)
    except NeuraverseError as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


def test_the_arm_is_seen_and_moves(renderer, panda):
    home = renderer.image(panda.home)
    assert home.shape == (120, 160, 3)
    assert home.dtype == np.uint8
    assert home.std() > 10.0  # not a blank
    turned = renderer.image([1.0, *panda.home[1:]])
    assert (np.abs(home.astype(int) - turned) > 30).any(2).mean() > 0.02
    np.testing.assert_array_equal(home, renderer.image(panda.home))


def test_a_line_is_drawn(renderer, panda):
    line = Line(
        points=np.array([[0.2, -0.3, 0.3], [0.5, 0.0, 0.3], [0.5, 0.3, 0.3]]),
        rgba=(1, 0, 0, 1),
        radius_m=0.02,
    )
    plain, drawn = renderer.image(panda.home), renderer.image(panda.home, lines=[line])
    changed = (plain != drawn).any(2)
    assert changed.any()
    red = drawn[changed].astype(int)
    assert np.median(red[:, 0] - red[:, 1]) > 60


def test_a_frame_of_physics_is_its_state(renderer, panda):
    physics = Physics(renderer.model, 2, threads=1)
    physics.qpos[1] = physics.qpos.new_tensor(panda.home)
    np.testing.assert_array_equal(renderer.frame(physics, 1), renderer.image(panda.home))


def test_views(renderer, panda):
    first = renderer.image(panda.home)
    renderer.look(View(azimuth_deg=0.0))
    assert (renderer.image(panda.home) != first).any()
    renderer.look(View())
    with pytest.raises(UnknownNameError, match="camera"):
        renderer.look("side")


def test_pictures_are_saved(renderer, panda, tmp_path):
    frames = render_frames(renderer.model, [panda.home, [0.5, *panda.home[1:]]], width=80, height=60)
    save_png(tmp_path / "one.png", frames[0])
    with Image.open(tmp_path / "one.png") as image:
        np.testing.assert_array_equal(np.asarray(image), frames[0])
    save_gif(tmp_path / "two.gif", frames, fps=20)
    with Image.open(tmp_path / "two.gif") as film:
        assert film.n_frames == 2
        assert film.info["duration"] == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.gif"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    frame = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(StorageError, match="nowhere"):
        save_png(tmp_path / "nowhere" / "one.png", frame)


def test_without_opengl_one_sentence_says_what_to_install(panda, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    with pytest.raises(NeuraverseError, match=r"cannot render pictures.*libegl1") as caught:
        Renderer(panda.spec().compile())
    assert "\n" not in str(caught.value)


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"neuraverse\[train\]"):
        save_png(Path("never.png"), np.zeros((4, 4, 3), dtype=np.uint8))
