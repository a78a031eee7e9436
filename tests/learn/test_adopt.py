"""From a run to a skill, and from a skill to its child on another body."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from neuraverse.errors import ConfigError, IncompatibleError
from neuraverse.interface import Interface, Signal
from neuraverse.learn.adopt import PROBE_SEED, Decision, Probe, decide, fine_tune, probe
from neuraverse.learn.evaluation import evaluate
from neuraverse.learn.export import policy_of
from neuraverse.learn.sealing import seal
from neuraverse.learn.trainer import Trainer
from neuraverse.skill import Skill
from neuraverse.trust import verify

SEED = 2_000_000_000


@pytest.fixture(scope="module")
def trained(reach):
    """A short run and its score."""
    recipe = reach.recipe("validation.every=5", "validation.stop_lower=0.85", "ppo.total_steps=40000")
    result = Trainer(reach.env(32), recipe, device="cpu", eval_env=reach.env(32)).fit()
    assert result.reached
    return recipe, result, evaluate(result.policy, reach.env(50), episodes=100, seed_first=SEED)


@pytest.fixture(scope="module")
def parent(reach, trained, publisher, tmp_path_factory):
    recipe, result, scored = trained
    key = publisher.private_key_path("default")
    path = tmp_path_factory.mktemp("skills") / "reach"
    return seal(result, recipe, scored, path, env=reach.env(1), key=key)


def test_a_sealed_skill_opens_verifies_and_acts_alike(reach, trained, parent, publisher):
    recipe, result, scored = trained
    skill = Skill.open(parent.path)
    assert verify(skill.path, publisher) == publisher.public_key().fingerprint
    manifest = skill.manifest
    assert (manifest.name, manifest.version, manifest.parents) == ("acme/reach", "1.0.0", ())
    assert manifest.interface == reach.interface
    assert manifest.evaluation.score == scored.score
    assert (manifest.evaluation.seed_first, manifest.evaluation.seed_count) == (SEED, 100)
    assert manifest.training.recipe == recipe.to_dict()
    assert manifest.training.env_steps == result.env_steps
    assert manifest.training.seed_scores == {"0": result.validation.score.rate}
    assert {"torch", "numpy", "gymnasium", "python"} <= set(manifest.versions)
    # The shipped graph against the trained policy, in SI units: action_scale is (0.3, 0.5).
    flat = torch.randn(100, 3)
    shipped = skill.policy()({"offset": flat[:, :2].numpy(), "bias": flat[:, 2].numpy()})
    wanted = result.policy(flat).numpy() * np.float32([0.3, 0.5])
    np.testing.assert_allclose(shipped["velocity"], wanted, atol=1e-5)
    assert torch.equal(policy_of(skill).theta, result.policy.theta)
    assert sum(json.loads(skill.read("evaluation.json"))["success"]) == manifest.evaluation.successes
    curve = json.loads(skill.read("curve.json"))
    assert curve["env_steps"][-1] == result.env_steps
    card = skill.read("README.md").decode()
    assert card.startswith("---\nlibrary_name: neuraverse\npipeline_tag: robotics\n")
    assert "Simulation only" in card
    assert f"{scored.score.rate:.3f}" in card


def test_a_robot_that_it_suits_uses_it(reach, parent):
    found = probe(parent, reach.env(64), episodes=128)
    assert found.problems == ()
    assert found.scored.seed_first == PROBE_SEED
    assert decide(found, 0.7).action == "use"


def test_another_body_fine_tunes_it_and_publishes_a_child(reach, trained, parent, publisher, tmp_path):
    """A full action moves the point the other way, weakly: the parent fails, and must not mislead."""
    recipe, _, _ = trained
    body = -0.25
    found = probe(parent, reach.env(64, body))
    assert decide(found, 0.9).action == "fine-tune"
    result = fine_tune(
        parent,
        reach.env(32, body),
        recipe=recipe,
        target=0.85,
        zero_shot=found.scored,
        eval_env=reach.env(64, body),
    )
    assert result.reached
    scored = evaluate(result.policy, reach.env(50, body), episodes=100, seed_first=SEED)
    source = evaluate(policy_of(parent), reach.env(50, body), episodes=100, seed_first=SEED)
    assert scored.score.rate > source.score.rate
    child = seal(
        result,
        recipe,
        scored,
        tmp_path / "child",
        env=reach.env(1, body),
        key=publisher.private_key_path("default"),
        parent=parent,
        parent_score=source.score,
        version="1.1.0",
    )
    assert child.manifest.parents == (parent.digest,)
    assert child.manifest.evaluation.source == source.score
    assert 'base_model: "acme/reach"' in child.read("README.md").decode()


def test_a_near_body_keeps_what_the_parent_knew(reach, trained, parent):
    """Fine-tuning on the parent's own body: the parent is the first best, so the result is no worse."""
    recipe, _, _ = trained
    env = reach.env(64)
    start = evaluate(policy_of(parent), env, episodes=32, seed_first=recipe.validation.seed_first)
    result = fine_tune(
        parent,
        reach.env(32),
        recipe=recipe,
        overrides=["fine_tune.total_steps=2000"],
        target=1.0,
        eval_env=env,
    )
    assert result.validation.rank >= start.rank
    assert torch.equal(result.policy.normaliser_mean, policy_of(parent).normaliser_mean)


def test_exploration_is_raised_to_its_floor(reach, trained, parent):
    recipe, _, _ = trained
    result = fine_tune(
        parent,
        reach.env(32),
        recipe=recipe,
        overrides=[
            "fine_tune.std_floor=0.9",
            "fine_tune.total_steps=256",
            "fine_tune.warmup=9",
            "validation.every=0",
        ],
    )
    assert result.policy.log_std.exp().tolist() == pytest.approx([0.9, 0.9])


def refused(reach, parent, interface: Interface) -> Decision:
    env = reach.env(8)
    env.interface = interface
    found = probe(parent, env, episodes=8)
    assert found.scored is None, "nothing was run"
    with pytest.raises(IncompatibleError):
        fine_tune(parent, env)
    return decide(found, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: dataclasses.replace(i, rate_hz=20.0), "control rate: 10 Hz in the skill and 20 Hz here"),
        (
            lambda i: dataclasses.replace(i, observation=i.observation[::-1]),
            "observation signals are offset, bias",
        ),
        (
            lambda i: dataclasses.replace(
                i, observation=(Signal(name="offset", shape=(2,), unit="rad", frame="W"), i.observation[1])
            ),
            "offset: unit is m in the skill and rad here",
        ),
        (
            lambda i: dataclasses.replace(
                i, action=(dataclasses.replace(i.action[0], low=(-1.0, -1.0), high=(1.0, 1.0)),)
            ),
            "velocity: high is (0.3, 0.5) in the skill and (1.0, 1.0) here",
        ),
    ],
)
def test_an_interface_that_does_not_fit_is_refused(reach, parent, change, said):
    decision = refused(reach, parent, change(reach.interface))
    assert decision.action == "refuse"
    assert said in decision.reason


def test_decisions_at_their_edges(reach, trained):
    _, _, scored = trained
    whole = Probe(problems=(), scored=scored)
    assert decide(whole, scored.score.lower).action == "use"
    assert decide(whole, scored.score.lower + 1e-9).action == "fine-tune"
    assert decide(Probe(problems=("it blew up",), scored=scored), 0.0).action == "refuse"
    silent = dataclasses.replace(scored, score=None)
    assert decide(Probe(problems=(), scored=silent), 0.0).action == "refuse"


def test_a_task_that_blows_up_is_refused(reach, parent):
    class Broken(reach.env):
        def _obs(self):
            obs = super()._obs()
            obs[0, 0] = float("nan") if self.steps[0] == 3 else obs[0, 0]
            return obs

    found = probe(parent, Broken(4, gain=0.01), episodes=4)
    assert decide(found, 0.0).action == "refuse"


def test_a_foreign_module_is_not_imported_because_a_manifest_says_so(parent):
    with pytest.raises(ConfigError, match="whose module is not loaded here"):
        fine_tune(parent, overrides=["env.id=antigravity:x/Y-v0"], robot="ur5e")
