"""A batch of MuJoCo simulations, as live torch tensors.

`Physics` is the only module that knows the simulation backend, `mjbatch` (native MuJoCo on a C++ thread
pool). A task sees qpos, qvel, ctrl, time and named sensors, and nothing else: one list then serves this
backend, a GPU backend and a real robot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import mjbatch
import mujoco
import numpy as np
import torch
from torch import Tensor

from neuraverse.errors import UnknownNameError


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Physics:
    """N simulations of one model, stepped together.

    Args:
        model: Compiled model; copied by the backend, so later edits have no effect. MuJoCo's automatic reset
            of bad states is switched off in it.
        num_envs: Number of simulations, N.
        threads: Worker threads; 0 for all CPUs of the process.
        forward: Whether derived quantities (sensors) are brought up to the state after the last substep, at
            the cost of one ``mj_forward`` a step. Without, they are one substep old, as with ``mj_step``.

    Attributes:
        qpos: Generalised positions, float64 ``(N, nq)``, a live view: writes reach the simulation.
        qvel: Generalised velocities, float64 ``(N, nv)``, a live view.
        ctrl: Actuator controls, float64 ``(N, nu)``, a live view.
        time: Simulated time [s], float64 ``(N,)``, a live view.
        mocap_pos: Positions of mocap bodies [m], float64 ``(N, nmocap, 3)``, a live view.
        mocap_quat: Orientations of mocap bodies, w first, float64 ``(N, nmocap, 4)``, a live view.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, *, threads: int = 0, forward: bool = True
    ) -> None:
        # MuJoCo would put a simulation that blew up back to its start without a word; a caller must see it.
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.model = model
        self.num_envs = num_envs
        self._batch = mjbatch.Batch(model, num_envs, min(threads or available_cpus(), num_envs), forward)
        self._state = torch.from_numpy(self._batch.bind("state"))
        self.qpos = self._bind("qpos")
        self.qvel = self._bind("qvel")
        self.ctrl = self._bind("ctrl")
        self.time = self._bind("time")
        self.mocap_pos = self._bind("mocap_pos")
        self.mocap_quat = self._bind("mocap_quat")
        self._sensordata = (
            torch.from_numpy(self._batch.bind("sensordata", np.float32)) if model.nsensor else None
        )
        self._sites: tuple[Tensor, Tensor] | None = None
        self._load: tuple[Tensor, Tensor] | None = None
        self._model_fields: dict[str, Tensor] = {}
        self._batch.reset()
        self._initial = self._state[0].clone()

    def _bind(self, field: str) -> Tensor:
        return torch.from_numpy(self._batch.bind(field))

    @property
    def timestep_s(self) -> float:
        """Length of one substep [s]."""
        return float(self.model.opt.timestep)

    def sensor(self, name: str) -> Tensor:
        """A named sensor's readings, float32 ``(N, dim)``, a live view.

        Raises:
            UnknownNameError: The model has no such sensor.
        """
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SENSOR, name)
        if index < 0 or self._sensordata is None:
            known = [self.model.sensor(i).name for i in range(self.model.nsensor)]
            raise UnknownNameError("sensor", name, known)
        start = int(self.model.sensor_adr[index])
        return self._sensordata[:, start : start + int(self.model.sensor_dim[index])]

    def expand(self, field: str) -> Tensor:
        """Per-simulation values of a model field, ``(N, ...)``; writes apply from the next step on."""
        if field not in self._model_fields:
            self._model_fields[field] = torch.from_numpy(self._batch.expand(field))
        return self._model_fields[field]

    def step(self, substeps: int = 1) -> None:
        """Advance all simulations by `substeps` timesteps."""
        self._batch.step(nstep=substeps)

    def reset(self, ids: Tensor) -> None:
        """Put simulations `ids` back to the model's initial state.

        Write ``qpos``, ``qvel`` or ``mocap_pos`` afterwards, then call `forward`.
        """
        self._state[ids] = self._initial

    def forward(self, ids: Tensor | None = None) -> None:
        """Bring derived quantities up to the state without advancing time."""
        self._batch.forward(None if ids is None else ids.numpy())

    def site_pose(self, name: str) -> tuple[Tensor, Tensor]:
        """World pose of a site: position [m] ``(N, 3)`` and rotation ``(N, 3, 3)``, live float64 views."""
        if self._sites is None:
            pos, mat = self._bind("site_xpos"), self._bind("site_xmat")
            self._sites = pos, mat.reshape(self.num_envs, -1, 3, 3)
            self.forward()
        index = int(self.model.site(name).id)
        return self._sites[0][:, index], self._sites[1][:, index]

    def static_load(self) -> Tensor:
        """Generalised force that holds the present posture at rest [N or N·m], float64 ``(N, nv)``."""
        if self._load is None:
            self._load = self._bind("qfrc_bias"), self._bind("qfrc_passive")
            self.forward()
        bias, passive = self._load
        return bias - passive

    def jacobian(self, body: Tensor, point: Tensor, out: Tensor) -> Tensor:
        """Geometric Jacobian of a point that moves with a body.

        Args:
            body: Body ids, int32 ``(N,)``.
            point: Points in the world frame [m], float64 ``(N, 3)``, contiguous.
            out: Two ``(N, 3, nv)`` blocks, float64 ``(2, N, 3, nv)``: translation, then rotation.

        Returns:
            `out`, filled.
        """
        blocks = out.numpy()
        self._batch.jac(blocks[0], blocks[1], point.numpy(), body.numpy())
        return out

    def get_state(self) -> dict[str, Tensor]:
        """A copy of everything that the next step depends on."""
        state = {"state": self._state.clone()}
        state.update({f"model.{k}": v.clone() for k, v in self._model_fields.items()})
        return state

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned, to the same numbers."""
        for name, value in _with_prefix(state, "model."):
            self.expand(name).copy_(value)
        self._state.copy_(state["state"])
        self.forward()
        self._state.copy_(state["state"])


def _with_prefix(state: dict[str, Tensor], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))
