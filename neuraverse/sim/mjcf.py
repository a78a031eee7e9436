"""Any serial arm's MJCF, read and written anew as the bare arm that `Robot` wants.

The foreign file is compiled once for its kinematics and masses; the arm is then rebuilt from the compiled
figures, so that nothing of the file's meshes, defaults, contacts, actuators or includes is left. What hangs
off the chain (grippers, cables, another arm) keeps its mass: it is lumped into the link that carries it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from neuraverse.errors import ConfigError, ModelError, UnknownNameError
from neuraverse.sim.links import FLANGE, ArmJoint, ArmLink, lump, relative_pose, write_arm
from neuraverse.sim.posture import Arm
from neuraverse.sim.robot import Robot

Array = npt.NDArray[np.float64]

LEAST_DOF = 6
LEAST_ARMATURE = (
    0.03  # of a joint, as a share of the largest inertia of its kind: keeps the servos well-posed
)
UNKNOWN_TORQUE = 50.0  # [rad/s^2] of acceleration that an arm of unstated torque is taken to be capable of
_KINDS = {mujoco.mjtJoint.mjJNT_HINGE: "hinge", mujoco.mjtJoint.mjJNT_SLIDE: "slide"}
_FOREIGN = (
    *("keys", "sensors", "actuators", "tendons", "equalities", "pairs", "excludes"),
    *("skins", "flexes", "cameras", "lights", "numerics", "texts", "tuples"),
)


def import_arm(
    path: Path,
    *,
    tool: str | None,
    name: str | None,
    home: Sequence[float] | None,
    velocity_limit: float,
    **figures: float,
) -> Robot:
    """See `Robot.from_mjcf`."""
    name = name or path.stem
    spec = _read(path)
    body, site = _find_tool(spec, tool, path)
    chain = _chain(body, path)
    torques = {joint.name: _torque(spec, joint) for link in chain for joint in link.joints}
    _refuse_loops(spec, chain, path)
    model = _compile(spec, chain, path)
    for field in (
        "body_pos",
        "body_quat",
        "body_mass",
        "body_ipos",
        "body_inertia",
        "jnt_pos",
        "jnt_axis",
        "jnt_range",
    ):
        if not np.isfinite(getattr(model, field)).all():
            raise ModelError(f"{path}: {field.replace('_', ' ')} holds a number that is not finite")
    links, flange_pos, flange_quat = _links(model, chain, body, site, torques, path)
    joints = [joint for link in links for joint in link.joints]

    text = write_arm(name, links, flange_pos, flange_quat, [j.armature for j in joints])
    limits = np.array([j.limits for j in joints])
    arm = Arm(mujoco.MjSpec.from_string(text).compile(), FLANGE, limits)
    reach = arm.reach()
    posture = arm.home(reach) if home is None else np.asarray(home, dtype=np.float64)
    if posture is None:
        raise ModelError(
            f"{path}: no posture was found with the z axis of {tool} pointing down in front of the base",
            remedy="name as tool a body or site whose z axis points out of the flange, or give home=",
        )
    robot = Robot(
        name=name,
        mjcf=text,
        joints=tuple(j.name for j in joints),
        flange=FLANGE,
        home=tuple(float(q) for q in posture),
        position_limits=tuple(j.limits for j in joints),
        velocity_limits=(velocity_limit,) * len(joints),
        torque_limits=(1.0,) * len(joints),
        reach_m=reach,
        title=name,
        source=path.name,
        **figures,
    )
    kinds = np.array([j.kind for j in joints])
    inertia = robot.inertia_diag
    least = LEAST_ARMATURE * np.array([inertia[kinds == kind].max() for kind in kinds])
    armature = np.maximum([j.armature for j in joints], np.minimum(least, 0.1))
    robot = robot.replace(mjcf=write_arm(name, links, flange_pos, flange_quat, armature))
    torque = [j.torque or UNKNOWN_TORQUE * m for j, m in zip(joints, robot.inertia_diag, strict=True)]
    return robot.replace(torque_limits=tuple(float(t) for t in torque))


def _read(path: Path) -> mujoco.MjSpec:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file", remedy="give the path of an MJCF file")
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise ModelError(f"{path} is not MJCF that MuJoCo can read: {_line(error)}") from None


def _find_tool(spec: mujoco.MjSpec, tool: str | None, path: Path) -> tuple[Any, Any]:
    """The body that carries the tool, and the site that marks it if it was named by one."""
    sites = {site.name: site for site in spec.sites if site.name}
    bodies = {body.name: body for body in spec.bodies if body.name and body.name != "world"}
    if tool is None:
        far = [n for n, b in bodies.items() if sum(len(a.joints) for a in _up(b)) >= LEAST_DOF]
        raise ConfigError(
            f"{path}: say which body or site carries the tool",
            remedy=f"tool=NAME (--tool NAME), such as {', '.join(far[:8])}"
            if far
            else "tool=NAME (--tool NAME)",
        )
    if tool in sites:
        return sites[tool].parent, sites[tool]
    if tool in bodies:
        return bodies[tool], None
    raise UnknownNameError(f"body or site in {path.name}", tool, [*sites, *bodies])


def _up(body: Any) -> Iterator[Any]:
    """`body` and its ancestors, the world left out."""
    while body is not None and body.name != "world":
        yield body
        body = body.parent


def _chain(body: Any, path: Path) -> list[Any]:
    """Bodies from the base to the tool that have joints."""
    chain = [b for b in reversed(list(_up(body))) if b.joints]
    joints = [j for b in chain for j in b.joints]
    if not joints:
        raise ModelError(
            f"{path}: there is no joint between the base and {body.name}", remedy="name the arm's tool"
        )
    for joint in joints:
        if joint.type not in _KINDS:
            kind = str(joint.type).rsplit("_", 1)[-1].lower()
            raise ModelError(
                f"{path}: joint {joint.name or '(unnamed)'} of the chain is a {kind} joint",
                remedy="an arm here is a chain of hinges and slides on a fixed base",
            )
    if len(joints) < LEAST_DOF:
        raise ModelError(
            f"{path}: the chain to {body.name} has {len(joints)} joints: a full tool twist needs {LEAST_DOF}"
        )
    for number, joint in enumerate(joints):
        joint.name = joint.name or f"joint{number + 1}"
    return chain


def _refuse_loops(spec: mujoco.MjSpec, chain: list[Any], path: Path) -> None:
    """A constraint that ties the chain to itself or to the world makes it no serial arm."""
    own = {b.name for b in chain}
    joints = {j.name for b in chain for j in b.joints}
    mocap = {b.name for b in spec.bodies if b.mocap}
    for tie in spec.equalities:
        if not tie.active:
            continue
        if tie.type in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD):
            ends = [_carrier(spec, tie.objtype, n) for n in (tie.name1, tie.name2)]
            names = [e.name if e is not None else "world" for e in ends]
            above = [{b.name for b in _up(e) if b.name in own} for e in ends]
            if above[0] != above[1] and not mocap & set(names):
                raise ModelError(
                    f"{path}: {names[0]} is tied to {names[1]}: the chain has a closed loop",
                    remedy="an arm here is an open chain; parallel linkages are not supported",
                )
        elif (
            tie.type == mujoco.mjtEq.mjEQ_JOINT
            and tie.name1 in joints
            and (not tie.name2 or tie.name2 in joints)
        ):
            raise ModelError(f"{path}: joint {tie.name1} is coupled to {tie.name2 or 'a fixed value'}")


def _carrier(spec: mujoco.MjSpec, objtype: Any, name: str) -> Any:
    if objtype == mujoco.mjtObj.mjOBJ_SITE:
        site = spec.site(name)
        return site.parent if site is not None else None
    return spec.body(name) if name else None


def _torque(spec: mujoco.MjSpec, joint: Any) -> float:
    """Greatest torque that the file states for `joint`, 0 if it states none."""
    stated = [max(abs(joint.actfrcrange))]
    for a in spec.actuators:
        if a.trntype != mujoco.mjtTrn.mjTRN_JOINT or a.target != joint.name:
            continue
        gear = abs(a.gear[0])
        stated.append(max(abs(a.forcerange)) * gear)
        if a.gaintype == mujoco.mjtGain.mjGAIN_FIXED and a.biastype == mujoco.mjtBias.mjBIAS_NONE:
            stated.append(max(abs(a.ctrlrange)) * abs(a.gainprm[0]) * gear)
    known = [float(t) for t in stated if t > 0.0 and math.isfinite(t)]
    return min(known) if known else 0.0


def _compile(spec: mujoco.MjSpec, chain: list[Any], path: Path) -> mujoco.MjModel:
    """Compile with only the chain's joints left, and without meshes unless masses come from them."""
    for kind in _FOREIGN:
        for element in list(getattr(spec, kind, [])):
            spec.delete(element)
    own = {j.name for b in chain for j in b.joints}
    for joint in list(spec.joints):
        if joint.name not in own:
            spec.delete(joint)
    for element in (*spec.geoms, *spec.sites):
        element.material = ""
    for element in (*list(spec.materials), *list(spec.textures)):
        spec.delete(element)
    spec.compiler.fusestatic = False
    spec.compiler.discardvisual = False
    weighs_meshes = any(
        _is_mesh(g) and (g.mass > 0.0 or g.density > 0.0) and not g.parent.explicitinertial
        for g in spec.geoms
    )
    if weighs_meshes:
        try:
            return spec.compile()
        except ValueError:
            pass  # perhaps the meshes are missing: what else states a mass may be enough
    for geom in [g for g in spec.geoms if _is_mesh(g)]:
        spec.delete(geom)
    for element in (*list(spec.meshes), *list(spec.hfields)):
        spec.delete(element)
    try:
        return spec.compile()
    except ValueError as error:
        hint = (
            "state each link's mass with <inertial>, or bring the mesh files along" if weighs_meshes else ""
        )
        raise ModelError(f"{path} does not compile: {_line(error)}", remedy=hint) from None


def _is_mesh(geom: Any) -> bool:
    return bool(
        geom.type in (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_SDF, mujoco.mjtGeom.mjGEOM_HFIELD)
    )


def _links(
    model: mujoco.MjModel, chain: list[Any], body: Any, site: Any, torques: dict[str, float], path: Path
) -> tuple[list[ArmLink], Array, Array]:
    """The chain from the compiled model, base first, and the flange's pose in the last link."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = [int(b.id) for b in chain]
    root = next(int(b.id) for b in reversed(list(_up(body))))
    owner = {0: -1}
    for i in range(1, model.nbody):
        owner[i] = i if i in moving or i == root else owner[int(model.body_parentid[i])]
    links = []
    previous = None
    for i in [root, *(m for m in moving if m != root)]:
        R = data.xmat[i].reshape(3, 3)
        pos, quat = (np.zeros(3), data.xquat[i].copy())
        if previous is not None:
            pos, quat = relative_pose(data.xpos[previous], data.xquat[previous], data.xpos[i], data.xquat[i])
        members = [k for k, o in owner.items() if o == i]
        mass, com, inertia = lump(model, data, members)
        if i in moving and (mass < 1e-6 or np.trace(inertia) < 1e-9):
            raise ModelError(
                f"{path}: body {model.body(i).name or i} has a joint and no mass",
                remedy="state it with <inertial>, or bring the mesh files along",
            )
        first, count = int(model.body_jntadr[i]), int(model.body_jntnum[i])
        links.append(
            ArmLink(
                pos=pos,
                quat=quat,
                mass=mass,
                com=R.T @ (com - data.xpos[i]),
                inertia=R.T @ inertia @ R,
                joints=tuple(_joint(model, j, torques, path) for j in range(first, first + count)),
            )
        )
        previous = i
    if site is None:
        pos, quat = data.xpos[body.id], data.xquat[body.id]
    else:
        pos, quat = data.site_xpos[site.id], np.zeros(4)
        mujoco.mju_mat2Quat(quat, data.site_xmat[site.id])
    return links, *relative_pose(data.xpos[previous], data.xquat[previous], pos, quat)


def _joint(model: mujoco.MjModel, j: int, torques: dict[str, float], path: Path) -> ArmJoint:
    name, kind = model.joint(j).name, _KINDS[mujoco.mjtJoint(model.jnt_type[j])]
    low, high = (float(v) for v in model.jnt_range[j])
    if not model.jnt_limited[j]:
        if kind == "slide":
            raise ModelError(f"{path}: slide joint {name} has no range")
        low, high = -2.0 * math.pi, 2.0 * math.pi
    return ArmJoint(
        name=name,
        kind=kind,
        pos=model.jnt_pos[j].copy(),
        axis=model.jnt_axis[j].copy(),
        ref=float(model.qpos0[model.jnt_qposadr[j]]),
        limits=(low, high),
        armature=float(model.dof_armature[model.jnt_dofadr[j]]),
        torque=torques[name],
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
