"""WeldSeam: conformance on every arm, and its score against geometry worked by hand."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from neuraverse.errors import ConfigError, UnknownNameError
from neuraverse.sim.testing import check_task
from neuraverse.sim.vector_env import TaskVectorEnv
from neuraverse_envs.weld_seam.task import WeldSeam

ID = "neuraverse_envs:neuraverse/WeldSeam-v0"


@pytest.mark.parametrize("robot", ["panda", "ur5e", "iiwa14"])
def test_conforms_on(robot):
    failed = [c for c in check_task(ID, robot=robot) if not c.passed]
    assert not failed, failed


def test_expert_passes_and_chance_fails():
    detail = {c.name: c.detail for c in check_task(ID, episodes=128)}["success can be reached"]
    assert detail == "expert 100.0%, random 0.0% of 128 episodes"


@pytest.mark.filterwarnings("ignore:.*Box observation space.*infinity.*:UserWarning")
def test_passes_gymnasiums_own_check():
    env = gymnasium.make(ID, robot="ur5e").unwrapped
    check_env(env, skip_render_check=True)
    env.close()


def test_both_makers_know_it_by_the_same_id():
    vector = gymnasium.make_vec(ID, num_envs=3, robot="iiwa14")
    single = gymnasium.make(ID, robot="iiwa14")
    obs, _ = vector.reset(seed=5)
    one, _ = single.reset(seed=6)
    assert isinstance(obs, np.ndarray)
    np.testing.assert_array_equal(obs[1], one)


def _env(n: int = 1, **kwargs) -> TaskVectorEnv:
    kwargs.setdefault("randomise", {"noise_pos_m": (0.0, 0.0), "noise_rot_rad": (0.0, 0.0)})
    return TaskVectorEnv(WeldSeam(**kwargs), n, backend="torch", threads=1)


class Score:
    """Puts the torch of one environment anywhere and asks the task for its verdict, physics left out."""

    def __init__(self, *, length=0.1, curvature=0.0, speed=0.02):
        self.env = _env()
        self.env.reset(seed=0)
        self.task = self.env.task
        self.task.length[:] = length
        self.task.curvature[:] = curvature
        self.task.speed[:] = speed
        self.task.s[:] = self.task.s_max[:] = 0.0

    def at(self, s, *, lateral=0.0, distance=0.015, work=45.0, travel=10.0):
        """Stand over arc length `s` with the given errors: m, m, degrees, degrees."""
        kappa = float(self.task.curvature[0])
        phi = kappa * s
        x, y = (math.sin(phi) / kappa, (1.0 - math.cos(phi)) / kappa) if kappa else (s, 0.0)
        tangent = torch.tensor([[math.cos(phi), math.sin(phi), 0.0]])
        side = torch.tensor([[-math.sin(phi), math.cos(phi), 0.0]])
        point = torch.tensor([[x, y, 0.0]])
        w, t = math.radians(work), math.radians(travel)
        up = torch.tensor([[0.0, 0.0, 1.0]])
        axis = math.sin(t) * tangent - math.cos(t) * (math.cos(w) * up + math.sin(w) * side)
        across = torch.nn.functional.normalize(torch.linalg.cross(tangent, axis), dim=1)
        self.task.tool_pos = point - distance * axis - lateral * across
        # Any quaternion whose third axis is `axis`.
        half = torch.nn.functional.normalize(axis + up, dim=1)
        self.task.tool_quat = torch.cat((torch.zeros(1, 1), half), dim=1)
        return self.task.outcome()

    def weld(self, step=0.001, **errors):
        """Go along the whole seam at 20 mm/s (1 mm in each 50 ms period) and return the verdict."""
        outcome, s = None, 0.0
        while outcome is None or not bool(outcome.terminated):
            s += step
            outcome = self.at(s, **errors)
        return outcome


@pytest.mark.parametrize("curvature", [0.0, 3.0, -3.0])
def test_a_perfect_pass_succeeds(curvature):
    outcome = Score(curvature=curvature).weld()
    assert bool(outcome.info["success"])
    assert float(outcome.info["coverage"]) == pytest.approx(1.0, abs=1e-4)
    assert float(outcome.info["lateral_mm"]) < 0.02
    assert float(outcome.info["work_deg"]) < 0.1


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ({"lateral": 0.9e-3}, {"lateral": 1.1e-3}),
        ({"lateral": -0.9e-3}, {"lateral": -1.1e-3}),
        ({"distance": 0.0168}, {"distance": 0.0172}),
        ({"distance": 0.0132}, {"distance": 0.0128}),
        ({"work": 49.8}, {"work": 50.2}),
        ({"work": 40.2}, {"work": 39.8}),
        ({"travel": 14.8}, {"travel": 15.2}),
        ({"travel": 5.2}, {"travel": 4.8}),
        ({"step": 0.00123}, {"step": 0.00127}),
        ({"step": 0.00077}, {"step": 0.00073}),
    ],
)
def test_each_tolerance_lies_where_it_is_said(inside, outside):
    assert bool(Score().weld(**inside).info["success"]), inside
    assert not bool(Score().weld(**outside).info["success"]), outside


def test_errors_are_reported_in_their_units():
    info = Score().weld(lateral=0.5e-3, distance=0.016, work=47.0, travel=11.0).info
    assert float(info["lateral_mm"]) == pytest.approx(0.5, abs=0.02)
    assert float(info["distance_mm"]) == pytest.approx(1.0, abs=0.05)
    assert float(info["work_deg"]) == pytest.approx(2.0, abs=0.05)
    assert float(info["travel_deg"]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("bad_steps", "success"), [(4, True), (6, False)])
def test_ninety_five_percent_of_the_length_must_be_good(bad_steps, success):
    score, outcome = Score(), None
    for i in range(1, 102):
        outcome = score.at(i * 0.001, lateral=0.003 if 40 <= i < 40 + bad_steps else 0.0)
        if bool(outcome.terminated):
            break
    assert bool(outcome.info["success"]) is success


def test_a_second_pass_over_a_bad_stretch_mends_nothing():
    score = Score()
    for i in range(1, 51):
        score.at(i * 0.001, lateral=0.003 if i > 40 else 0.0)
    for i in range(49, 39, -1):
        score.at(i * 0.001)
    for i in range(41, 102):
        outcome = score.at(i * 0.001)
    assert bool(outcome.terminated)
    assert not bool(outcome.info["success"])
    assert float(outcome.info["coverage"]) == pytest.approx(0.9, abs=0.005)


def test_standing_still_earns_nothing_and_finishing_well_pays():
    score = Score()
    score.at(0.001)
    still = score.at(0.001)
    assert float(still.reward["progress"]) == pytest.approx(0.0, abs=1e-4)
    assert float(still.reward["in_tolerance"]) == 0.0
    assert float(Score().weld().reward["success"]) == 10.0


def test_straying_ends_the_episode_as_a_failure():
    outcome = Score().at(0.001, lateral=0.03)
    assert bool(outcome.terminated)
    assert not bool(outcome.info["success"])
    assert float(outcome.reward["strayed"]) == -10.0


def test_latency_delays_a_command_by_its_length():
    # The same twist with no latency and with two control periods: the same motion, two periods later.
    quiet = {"noise_pos_m": (0.0, 0.0), "noise_rot_rad": (0.0, 0.0)}
    tips = []
    for latency in (0.0, 0.1):
        env = _env(
            randomise={
                **quiet,
                "latency_s": (latency, latency),
                "servo_hz": (5.0, 5.0),
                "tool_mass_kg": (1.0, 1.0),
            }
        )
        env.reset(seed=3)
        start = env.task.tool_pos.clone()
        action = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])
        tips.append([])
        for _ in range(12):
            env.step(action)
            tips[-1].append((env.task.tool_pos - start)[0].clone())
    prompt, late = (torch.stack(t) for t in tips)
    assert float(late[1].norm()) < 1e-4
    assert torch.allclose(late[2:], prompt[:-2], atol=2e-4)


def test_bodies_are_drawn_from_the_ranges_and_seen_by_the_physics():
    ranges = {"servo_hz": (2.0, 8.0), "tool_mass_kg": (0.5, 2.0), "latency_s": (0.0, 0.1)}
    env = _env(200, randomise=ranges)
    env.reset(seed=1)
    task = env.task
    model = task.physics.model
    kp = task.physics.expand("actuator_gainprm")[:, 0, 0]
    hz = (kp / float(model.actuator_gainprm[0, 0])).sqrt() * task.robot.servo_hz
    assert 2.0 <= float(hz.min()) < 2.5
    assert 7.5 < float(hz.max()) <= 8.0 + 1e-9
    mass = task.physics.expand("body_mass")[:, int(model.body("tool").id)]
    assert 0.5 <= float(mass.min()) < 0.6
    assert 1.9 < float(mass.max()) <= 2.0


def test_seams_are_straight_and_curved_in_varying_poses():
    env = _env(400)
    env.reset(seed=2)
    task = env.task
    assert 0.15 < float((task.curvature == 0).float().mean()) < 0.35
    assert float(task.curvature.max()) > 3.5
    assert float(task.curvature.min()) < -3.5
    assert float(task.physics.mocap_pos[:, 0].std(dim=0).min()) > 0.01
    assert float(task.physics.mocap_quat[:, 0].std(dim=0).max()) > 0.02


@pytest.mark.parametrize(
    ("randomise", "error", "says"),
    [
        ({"servo": (1.0, 2.0)}, UnknownNameError, "servo_hz"),
        ({"servo_hz": (5.0, 2.0)}, ConfigError, "low <= high"),
        ({"latency_s": (0.0, 9.0)}, ConfigError, "0.5"),
        ({"latency_s": "fast"}, ConfigError, "two numbers"),
    ],
)
def test_wrong_ranges_are_named(randomise, error, says):
    with pytest.raises(error, match=says):
        WeldSeam(randomise=randomise)


def test_an_unknown_robot_lists_the_near_names():
    with pytest.raises(UnknownNameError, match="panda"):
        WeldSeam(robot="pandah")
