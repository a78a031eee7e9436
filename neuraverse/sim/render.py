"""Pictures and films of a simulation, on machines with and without a screen.

`Renderer` draws one simulation at a time with MuJoCo's own OpenGL renderer. Without a screen it goes through
EGL, which needs no GPU; ``MUJOCO_GL`` overrides the choice as it does in MuJoCo. Where nothing can draw, one
sentence says what to install.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import numpy.typing as npt

from neuraverse.errors import MissingExtraError, NeuraverseError, UnknownNameError
from neuraverse.storage import write_atomic

if TYPE_CHECKING:
    from neuraverse.sim.physics import Physics

Frame = npt.NDArray[np.uint8]

_REMEDY = "on Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 and MUJOCO_GL=osmesa"


@dataclass(frozen=True, kw_only=True)
class View:
    """A free camera.

    Attributes:
        lookat: Point in the middle of the picture, in the world [m].
        distance_m: From that point.
        azimuth_deg: Direction of view about the vertical; 90 looks along +y.
        elevation_deg: Direction of view above the horizon; negative looks down.
    """

    lookat: tuple[float, float, float] = (0.3, 0.0, 0.35)
    distance_m: float = 1.5
    azimuth_deg: float = 140.0
    elevation_deg: float = -20.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of capsules drawn over the scene, such as a weld bead.

    Attributes:
        points: Corners in the world, shape (K, 3) [m].
        rgba: Colour.
        radius_m: Half its thickness.
    """

    points: npt.NDArray[Any]
    rgba: tuple[float, float, float, float] = (0.9, 0.35, 0.1, 1.0)
    radius_m: float = 0.002


class Renderer:
    """Draws states of one model.

    Args:
        model: The model; its offscreen buffer is enlarged to the picture.
        width: Of a picture [pixel].
        height: Of a picture [pixel].
        view: A free camera, or the name of a camera in the model.

    Raises:
        NeuraverseError: This machine cannot render; says what to install.
        UnknownNameError: The model has no camera of that name.
    """

    def __init__(
        self, model: mujoco.MjModel, *, width: int = 640, height: int = 480, view: View | str = View()
    ) -> None:
        self._context: Any = None
        self._gl: Any = None
        self.model, self.width, self.height = model, width, height
        self._camera = mujoco.MjvCamera()
        self.look(view)
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=20_000)
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)
        size = model.vis.global_
        size.offwidth, size.offheight = max(size.offwidth, width), max(size.offheight, height)
        self._gl = _gl_context(width, height)
        try:
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except (mujoco.FatalError, RuntimeError) as error:
            self.close()
            raise _cannot_render(error) from None
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def look(self, view: View | str) -> None:
        """Move the camera.

        Raises:
            UnknownNameError: The model has no camera of that name.
        """
        camera = self._camera
        if isinstance(view, str):
            names = [self.model.camera(i).name for i in range(self.model.ncam)]
            if view not in names:
                raise UnknownNameError("camera", view, names)
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(view)
            return
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.lookat
        camera.distance, camera.azimuth, camera.elevation = (
            view.distance_m,
            view.azimuth_deg,
            view.elevation_deg,
        )

    def image(
        self,
        qpos: npt.ArrayLike,
        mocap_pos: npt.ArrayLike = (),
        mocap_quat: npt.ArrayLike = (),
        *,
        lines: Iterable[Line] = (),
    ) -> Frame:
        """A picture of one state.

        Args:
            qpos: Generalised positions, shape (nq,).
            mocap_pos: Positions of the mocap bodies, shape (nmocap, 3); as modelled if empty.
            mocap_quat: Their orientations, shape (nmocap, 4); as modelled if empty.
            lines: Drawn over the scene.

        Returns:
            Shape (height, width, 3), RGB.
        """
        if self._context is None:
            raise NeuraverseError("the renderer is closed")
        data = self._data
        data.qpos[:] = np.asarray(qpos)
        for target, value in ((data.mocap_pos, mocap_pos), (data.mocap_quat, mocap_quat)):
            if np.size(value):
                target[:] = np.asarray(value)
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_camlight(self.model, data)
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        for line in lines:
            self._draw(line)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return pixels[::-1].copy()

    def frame(self, physics: Physics, index: int = 0, *, lines: Iterable[Line] = ()) -> Frame:
        """A picture of simulation `index` as it is now, shape (height, width, 3)."""
        return self.image(
            physics.qpos[index].cpu().numpy(),
            physics.mocap_pos[index].cpu().numpy(),
            physics.mocap_quat[index].cpu().numpy(),
            lines=lines,
        )

    def close(self) -> None:
        """Free the OpenGL context; the renderer cannot be used afterwards."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = None

    def _draw(self, line: Line) -> None:
        points = np.asarray(line.points, dtype=np.float64)
        for start, end in itertools.pairwise(points):
            if self._scene.ngeom >= self._scene.maxgeom:
                return
            geom = self._scene.geoms[self._scene.ngeom]
            kind = mujoco.mjtGeom.mjGEOM_CAPSULE
            rgba = np.asarray(line.rgba, dtype=np.float32)
            mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.eye(3).ravel(), rgba)
            mujoco.mjv_connector(geom, kind, line.radius_m, start, end)
            self._scene.ngeom += 1


def render_frames(
    model: mujoco.MjModel,
    qpos: npt.ArrayLike,
    mocap_pos: npt.ArrayLike | None = None,
    mocap_quat: npt.ArrayLike | None = None,
    *,
    width: int = 640,
    height: int = 480,
    view: View | str = View(),
) -> list[Frame]:
    """Pictures of a trajectory.

    Args:
        model: The model.
        qpos: Shape (T, nq).
        mocap_pos: Shape (T, nmocap, 3); as modelled by default.
        mocap_quat: Shape (T, nmocap, 4); as modelled by default.
        width: Of a picture [pixel].
        height: Of a picture [pixel].
        view: The camera.

    Raises:
        NeuraverseError: This machine cannot render; says what to install.
    """
    states = np.asarray(qpos)
    empty = [()] * len(states)
    positions = empty if mocap_pos is None else np.asarray(mocap_pos)
    turns = empty if mocap_quat is None else np.asarray(mocap_quat)
    renderer = Renderer(model, width=width, height=height, view=view)
    try:
        return [renderer.image(*state) for state in zip(states, positions, turns, strict=True)]
    finally:
        renderer.close()


def save_png(path: Path, frame: Frame) -> None:
    """Write one picture.

    Raises:
        MissingExtraError: pillow is not installed.
        StorageError: The disk refused; nothing half-written was left.
    """
    buffer = io.BytesIO()
    _pillow().fromarray(frame).save(buffer, format="PNG", optimize=True)
    write_atomic(Path(path), buffer.getvalue())


def save_gif(path: Path, frames: Sequence[Frame], *, fps: float = 20.0) -> None:
    """Write a looping film.

    Args:
        path: Where to.
        frames: At least one picture, all of one size.
        fps: Pictures a second; GIF keeps whole hundredths of a second.

    Raises:
        MissingExtraError: pillow is not installed.
        StorageError: The disk refused; nothing half-written was left.
    """
    image = _pillow()
    # One palette for all: a palette for each picture would flicker and grow the file.
    palette = image.fromarray(frames[len(frames) // 2]).quantize(colors=128)
    pictures = [image.fromarray(f).quantize(palette=palette, dither=0) for f in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(round(100.0 / fps), 2) * 10,
        loop=0,
    )
    write_atomic(Path(path), buffer.getvalue())


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "train", "saving pictures") from None
    return Image


def _gl_context(width: int, height: int) -> Any:
    """An OpenGL context: what MUJOCO_GL says, else EGL where there is no screen, else MuJoCo's own choice."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    default = "egl" if sys.platform == "linux" and not screen else ""
    backend = os.environ.get("MUJOCO_GL", "").lower().strip() or default
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.gl_context import GLContext
        return GLContext(width, height)
    except Exception as error:  # the loaders of OpenGL raise whatever is at hand
        raise _cannot_render(error) from None


def _cannot_render(error: Exception) -> NeuraverseError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    remedy = _REMEDY if sys.platform == "linux" else "set MUJOCO_GL to a backend that this machine has"
    return NeuraverseError(f"this machine cannot render pictures: {reason}", remedy=remedy)
