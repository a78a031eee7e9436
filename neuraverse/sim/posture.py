"""How far an arm reaches, and where it is comfortable: a home posture, with the tool down in front of it.

The search is deterministic: seeded postures are driven by inverse kinematics to a grid of flange positions,
and the best is the one that stays furthest from joint limits and singular postures, there and 15 cm around.
"""

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SAMPLES = 2048
RESTARTS = 12
FORWARD = (0.45, 0.55, 0.65)  # flange in front of the first joint, as a share of the reach
UPWARD = (-0.2, 0.0, 0.2)  # and above it
AROUND = ((0.15, 0.0), (-0.1, 0.0), (0.0, 0.15), (0.0, -0.15))  # the work around home [m]
CLEARANCE_M = 0.4  # of the flange above the base, for a tool and its work
DOWN = np.array([0.0, 0.0, -1.0])


class Arm:
    """A bare arm with one flange site, for kinematics.

    Args:
        model: Its joints are hinges and slides, one degree of freedom each.
        flange: Name of the site.
        limits: (low, high) of each joint, shape (nv, 2).
    """

    def __init__(self, model: mujoco.MjModel, flange: str, limits: Array) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.site = int(model.site(flange).id)
        self.low, self.high = limits[:, 0], limits[:, 1]
        # Where a joint turns more than once around, one turn is enough to look for postures.
        hinge = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
        wide = hinge & (self.high - self.low > 2.0 * np.pi)
        self._from = np.where(wide, np.clip(-np.pi, self.low, self.high), self.low)
        self._to = np.where(wide, np.clip(np.pi, self.low, self.high), self.high)

    def samples(self, n: int) -> Array:
        """Random postures, the same at every call, shape (n, nv)."""
        return np.random.default_rng(0).uniform(self._from, self._to, (n, self.model.nv))

    def place(self, q: Array) -> tuple[Array, Array]:
        """Position (3,) [m] and rotation (3, 3) of the flange at posture `q`."""
        self.data.qpos[:] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy(), self.data.site_xmat[self.site].reshape(3, 3).copy()

    def jacobian(self) -> Array:
        """Of the flange at the posture last placed, shape (6, nv): linear, then angular."""
        mujoco.mj_comPos(self.model, self.data)
        J = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, J[:3], J[3:], self.site)
        return J

    def first_axis(self) -> tuple[Array, Array]:
        """Anchor and direction of the first hinge in the world."""
        self.place(self.model.qpos0)
        hinges = np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        first = int(hinges[0]) if len(hinges) else 0
        return self.data.xanchor[first].copy(), self.data.xaxis[first].copy()

    def reach(self) -> float:
        """Greatest distance of the flange from the axis of the first hinge, over random postures [m]."""
        anchor, axis = self.first_axis()
        points = np.array([self.place(q)[0] for q in self.samples(SAMPLES)]) - anchor
        return float(np.linalg.norm(points - np.outer(points @ axis, axis), axis=1).max())

    def point_down(self, q: Array, target: Array, steps: int = 60) -> tuple[Array, float]:
        """Move the flange from posture `q` to `target` with its z axis down, the turn about it left free.

        Returns:
            The posture, and what is missing: metres plus radians.
        """
        centre, span = 0.5 * (self._from + self._to), self._to - self._from
        margin = 0.02 * span
        missing = np.inf
        for _ in range(steps):
            position, R = self.place(q)
            z = R[:, 2]
            turn = np.cross(z, DOWN)
            if z @ DOWN < -0.99:  # straight up: any horizontal axis leads down
                turn = R[:, 0]
            error = np.concatenate((target - position, turn))
            missing = float(np.linalg.norm(error[:3]) + np.arccos(np.clip(z @ DOWN, -1.0, 1.0)))
            free = np.eye(6)
            free[3:, 3:] -= np.outer(z, z)
            J = free @ self.jacobian()
            damped = J.T @ np.linalg.inv(J @ J.T + 1e-4 * np.eye(6))
            step = damped @ error
            step += 0.05 * (centre - q - damped @ (J @ (centre - q)))
            q = np.clip(q + np.clip(0.7 * step, -0.3, 0.3), self.low + margin, self.high - margin)
        return q, missing

    def comfort(self, q: Array, reach: float) -> float:
        """How far `q` is from joint limits and singular postures, with the elbow up: 0 to 1."""
        position, _ = self.place(q)
        J = self.jacobian()
        J[:3] /= reach
        singular = float(np.linalg.svd(J, compute_uv=False)[5])
        edge = np.minimum(q - self.low, self.high - q) / np.minimum(self.high - self.low, 2.0 * np.pi)
        lowest = float(self.data.xanchor[1:, 2].min())
        elbow_up = 1.0 if lowest > position[2] - 0.05 else 0.3
        return singular * min(float(edge.min()) / 0.15, 1.0) * elbow_up

    def home(self, reach: float) -> Array | None:
        """A comfortable posture with the flange down in front, shape (nv,); None if there is none."""
        anchor, _ = self.first_axis()
        floor = float(self.data.xpos[1:, 2].min()) + min(CLEARANCE_M, 0.5 * reach)
        grid = [
            np.array([anchor[0] + f * reach, anchor[1], max(anchor[2] + u * reach, floor)])
            for f in FORWARD
            for u in UPWARD
        ]
        starts = sorted(self.samples(SAMPLES), key=lambda q: self._far(q, grid[len(grid) // 2]))[:RESTARTS]
        best: tuple[float, Array] | None = None
        for target in grid:
            there = [self.point_down(start, target) for start in starts]
            found = [q for q, missing in there if missing < 2e-3]
            if not found:
                continue
            q = max(found, key=lambda q: self.comfort(q, reach))
            score = min(self.comfort(q, reach), self._comfort_around(q, target, reach))
            if best is None or score > best[0]:
                best = (score, q)
        return None if best is None else best[1]

    def _comfort_around(self, q: Array, target: Array, reach: float) -> float:
        """Least comfort on the way from `q` to the points around `target`; 0 if one is out of reach."""
        least = np.inf
        for dx, dy in AROUND:
            there = q
            for share in (0.5, 1.0):
                there, missing = self.point_down(there, target + share * np.array([dx, dy, 0.0]), steps=15)
                least = min(least, self.comfort(there, reach) if missing < 5e-3 else 0.0)
        return least

    def _far(self, q: Array, target: Array) -> float:
        position, R = self.place(q)
        return float(np.linalg.norm(target - position) + 0.3 * (1.0 - R[:, 2] @ DOWN))
