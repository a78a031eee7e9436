"""The bare arm as data: links with lumped inertia and joints, and their MJCF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET  # for writing alone: what is read goes through MuJoCo

import mujoco
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FLANGE = "flange"


@dataclass(frozen=True, kw_only=True)
class ArmJoint:
    """One degree of freedom; `torque` is 0 if nobody says."""

    name: str
    kind: str
    pos: Array
    axis: Array
    ref: float
    limits: tuple[float, float]
    armature: float
    torque: float


@dataclass(frozen=True, kw_only=True)
class ArmLink:
    """A body of the chain with all that is rigidly attached to it; the base has no joints."""

    pos: Array
    quat: Array
    mass: float
    com: Array
    inertia: Array  # (3, 3) about the centre of mass, in the body's axes
    joints: tuple[ArmJoint, ...]


def relative_pose(from_pos: Array, from_quat: Array, pos: Array, quat: Array) -> tuple[Array, Array]:
    """A world pose, seen from another."""
    inverse, turn, shift = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_negQuat(inverse, from_quat)
    mujoco.mju_mulQuat(turn, inverse, quat)
    mujoco.mju_rotVecQuat(shift, pos - from_pos, inverse)
    return shift, turn


def lump(model: mujoco.MjModel, data: mujoco.MjData, members: list[int]) -> tuple[float, Array, Array]:
    """Mass, centre of mass and inertia of `members` together, in world axes (parallel axis theorem)."""
    mass = float(model.body_mass[members].sum())
    if mass <= 0.0:
        return 0.0, data.xpos[members[0]].copy(), np.zeros((3, 3))
    com = (model.body_mass[members, None] * data.xipos[members]).sum(0) / mass
    inertia = np.zeros((3, 3))
    for i in members:
        R, d = data.ximat[i].reshape(3, 3), data.xipos[i] - com
        inertia += R @ np.diag(model.body_inertia[i]) @ R.T
        inertia += model.body_mass[i] * (d @ d * np.eye(3) - np.outer(d, d))
    return mass, com, inertia


def write_arm(name: str, links: list[ArmLink], flange_pos: Array, flange_quat: Array, armature: Any) -> str:
    """MJCF of the bare arm, with capsules from joint to joint for pictures."""
    root = ET.Element("mujoco", model=name)
    ET.SubElement(root, "compiler", angle="radian", autolimits="true", balanceinertia="true")
    defaults = ET.SubElement(root, "default")
    ET.SubElement(
        defaults,
        "geom",
        type="capsule",
        contype="0",
        conaffinity="0",
        group="2",
        mass="0",
        rgba="0.8 0.82 0.85 1",
    )
    parent = ET.SubElement(root, "worldbody")
    anchors = [link.joints[0].pos if link.joints else np.zeros(3) for link in links]
    size = 0.05 * sum(float(np.linalg.norm(link.pos)) for link in links)
    remaining = iter(armature)
    for number, link in enumerate(links):
        parent = ET.SubElement(
            parent, "body", name=f"link{number}", pos=_text(link.pos), quat=_text(link.quat), gravcomp="1"
        )
        if link.mass > 0.0:
            I = link.inertia  # noqa: E741 - the field's name
            full = (I[0, 0], I[1, 1], I[2, 2], I[0, 1], I[0, 2], I[1, 2])
            ET.SubElement(
                parent, "inertial", mass=repr(link.mass), pos=_text(link.com), fullinertia=_text(full)
            )
        for joint in link.joints:
            ET.SubElement(
                parent,
                "joint",
                name=joint.name,
                type=joint.kind,
                pos=_text(joint.pos),
                axis=_text(joint.axis),
                ref=repr(joint.ref),
                range=_text(joint.limits),
                armature=repr(float(next(remaining))),
            )
        end = flange_pos
        if number + 1 < len(links):
            after = np.zeros(3)
            mujoco.mju_rotVecQuat(after, anchors[number + 1], links[number + 1].quat)
            end = links[number + 1].pos + after
        if float(np.linalg.norm(end - anchors[number])) > 0.2 * size:
            radius = size * (1.0 - 0.5 * number / len(links))
            ET.SubElement(
                parent, "geom", fromto=_text((*anchors[number], *end)), size=repr(max(radius, 0.01))
            )
    ET.SubElement(parent, "site", name=FLANGE, pos=_text(flange_pos), quat=_text(flange_quat), group="4")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def _text(values: Any) -> str:
    return " ".join(repr(float(v)) for v in values)
