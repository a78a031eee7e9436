"""Robots in their cells: each hears of a skill at the registry, checks it, tries it and decides."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from neuraverse.client import Client
from neuraverse.errors import ConfigError, IntegrityError, UnknownNameError
from neuraverse.fleet import Cell, evaluate, fine_tune, get, start_cell
from neuraverse.keys import KeyStore
from neuraverse.learn import Recipe, child_recipe, make_env, seal
from neuraverse.learn import evaluate as evaluate_here
from neuraverse.learn.recipe import EnvSettings
from neuraverse.registry import background

NAME = "acme/weld-seam"
SEED = 2_000_000_000


@pytest.fixture
def registry(tmp_path):
    with background(tmp_path / "registry") as url:
        yield url


@pytest.fixture(scope="module")
def skill(weld, publisher, tmp_path_factory):
    """A skill of a Panda that has not learned much."""
    recipe = weld.recipe("env.randomise={servo_hz=[4.0, 9.0]}")
    result = weld.train(recipe)
    env = make_env(recipe.env, 16, threads=1)
    scored = evaluate_here(result.policy, env, episodes=16, seed_first=SEED)
    path = tmp_path_factory.mktemp("skills") / "weld-seam"
    return seal(result, recipe, scored, path, env=env, key=publisher.private_key_path("default"))


@pytest.fixture
def publish(registry, publisher):
    """Publish a skill as its owner does."""
    with Client(registry, home=publisher.home) as client:
        yield lambda skill: client.publish(skill.path)


@pytest.fixture
def cell(registry, publisher, tmp_path):
    """The slow UR5e's cell, in this process; it trusts the publisher."""
    home = trusting(tmp_path / "slow", publisher)
    with contextlib.closing(Cell(env=slow(), registry=registry, home=home, num_envs=16)) as cell:
        yield cell


def slow() -> EnvSettings:
    return EnvSettings(id="neuraverse_envs:neuraverse/WeldSeam-v0", robot="ur5e-slow")


def trusting(home: Path, publisher: KeyStore) -> Path:
    keys = KeyStore(home)
    keys.new("default")
    keys.trust(publisher.public_key().pem, "acme")
    return home


@pytest.mark.usefixtures("fleet")
def test_a_robot_takes_over_a_skill_and_publishes_what_it_made_of_it(
    skill, weld, publish, publisher, registry, tmp_path
):
    home = trusting(tmp_path / "slow", publisher)
    cell = start_cell(slow(), registry=registry, home=home, num_envs=16)
    offer = get(cell.ready.remote())
    assert offer.robot == "ur5e-slow"
    coming = cell.listen.remote(NAME, target=0.9, episodes=16)
    publish(skill)
    report = get(coming)
    assert (report.robot, report.ref, report.digest) == ("ur5e-slow", f"{NAME}@1.0.0", skill.digest)
    assert report.verified == publisher.public_key().fingerprint
    assert report.path.is_relative_to(home)
    assert report.decision == "fine-tune"
    assert "does not reach 0.9" in report.reason
    assert report.zero_shot.n == 16
    assert report.probe_steps == report.probe.steps > 0
    assert any("servo bandwidth" in sentence for sentence in report.outside)
    assert 0.0 <= report.notified_s < 30.0
    assert 0.0 < report.pulled_s < report.seconds

    recipe = child_recipe(skill, robot="ur5e-slow", overrides=['skill.name="slow/weld-seam"'])
    seen = []
    result = fine_tune(
        report.path,
        recipe=recipe,
        run_dir=tmp_path / "run",
        zero_shot=report.probe,
        on_progress=lambda progress: seen.append(progress.iteration),
    )
    assert seen == list(range(1, len(result.curve) + 1))
    assert result.env_steps == recipe.fine_tune.total_steps
    child, parent = (
        evaluate(policy, recipe.env, 16, SEED, num_envs=16, workers=1) for policy in (result.policy, skill)
    )
    said = {"parent": skill.digest, "evaluation": child, "parent_evaluation": parent}
    published = get(cell.publish_child.remote(result, recipe, **said))
    assert get(cell.publish_child.remote(result, recipe, **said)) == published
    answer = httpx.get(f"{registry}/v1/skills/slow/weld-seam/1.0.0").json()
    assert answer["parents"] == [skill.digest]
    assert answer["publisher"] == KeyStore(home).public_key().fingerprint
    manifest = httpx.get(f"{registry}/v1/manifests/{published.digest.removeprefix('sha256:')}").json()
    assert manifest["body"]["robot"] == "ur5e-slow"
    assert manifest["evaluation"]["source"] == {
        "rate": parent.score.rate,
        "lower": parent.score.lower,
        "n": 16,
    }


def test_a_good_enough_skill_is_used(skill, publish, cell):
    publish(skill)
    report = cell.listen(NAME, target=0.0, episodes=16, after=0)
    assert report.decision == "use"
    assert "reaches 0" in report.reason


def test_a_stranger_s_skill_is_refused_before_it_is_pulled(skill, publish, registry, tmp_path):
    publish(skill)
    with contextlib.closing(Cell(env=slow(), registry=registry, home=tmp_path / "wary")) as cell:
        report = cell.listen(NAME, after=0)
    assert (report.decision, report.verified, report.path) == ("refuse", "", None)
    assert "not trusted for acme" in report.reason
    assert report.zero_shot is None
    assert not list((tmp_path / "wary").rglob("model.safetensors"))


def test_a_skill_that_does_not_fit_is_refused(tiny_skill, publish, cell):
    publish(tiny_skill)
    report = cell.listen(NAME, after=0)
    assert (report.decision, report.verified) == ("refuse", "")
    assert "does not fit ur5e-slow" in report.reason


def test_other_skills_are_passed_over(skill, make_skill, publish, cell, tmp_path):
    publish(make_skill(tmp_path / "other", name="other"))
    publish(skill)
    assert cell.listen(NAME, target=0.0, episodes=4, after=0).digest == skill.digest


def test_a_child_needs_a_key_and_equal_seeds(skill, weld, cell, tmp_path):
    recipe = weld.recipe()
    result = weld.train(weld.recipe("ppo.total_steps=256"))
    env = make_env(recipe.env, 4, threads=1)
    scored, other = (evaluate_here(result.policy, env, episodes=4, seed_first=s) for s in (SEED, SEED + 1))
    with pytest.raises(ConfigError, match="same seeds"):
        cell.publish_child(result, recipe, parent=skill.digest, evaluation=scored, parent_evaluation=other)
    with pytest.raises(UnknownNameError, match="no key named 'spare'"):
        cell.publish_child(
            result, recipe, parent=skill.digest, evaluation=scored, parent_evaluation=scored, key="spare"
        )


def test_a_cell_without_a_robot_is_refused(registry, tmp_path):
    with (
        contextlib.closing(Cell(env=EnvSettings(id="Pendulum-v1"), registry=registry, home=tmp_path)) as cell,
        pytest.raises(ConfigError, match="Pendulum-v1 has no robot"),
    ):
        cell.ready()


@pytest.mark.usefixtures("fleet")
def test_a_folder_that_changed_is_not_fine_tuned(skill, tiny_skill, tmp_path):
    from neuraverse.fleet import fine_tune_job, run

    job = fine_tune_job(skill, run_dir=tmp_path / "run", robot="ur5e-slow")
    job.arguments["digest"] = tiny_skill.digest
    with pytest.raises(IntegrityError, match="holds"):
        run([job])


def test_a_foreign_environment_of_a_manifest_is_not_imported(make_skill, tmp_path):
    recipe = Recipe.parse({"skill": {"name": "evil/x"}, "env": {"id": "antigravity:Evil-v0"}}).to_dict()
    training = {
        "algorithm": "ppo",
        "recipe": recipe,
        "seeds": (0,),
        "env_steps": 1,
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "device": "cpu",
    }
    skill = make_skill(tmp_path / "evil", training=training)
    with pytest.raises(ConfigError, match="antigravity:Evil-v0, whose module is not loaded here"):
        fine_tune(skill, run_dir=tmp_path / "run")
