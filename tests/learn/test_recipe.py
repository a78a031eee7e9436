"""Recipes: what is right loads, what is wrong is said in one sentence."""

import json

import pytest

from neuraverse.errors import ConfigError, UnknownNameError
from neuraverse.learn.recipe import EVALUATION_SEED, VALIDATION_SEED, Recipe, names

PLAIN = {"skill": {"name": "acme/reach"}, "env": {"id": "Reach-v0"}}


def test_every_recipe_loads():
    assert {"weld-seam", "half-cheetah"} <= set(names())
    for name in names():
        recipe = Recipe.load(name)
        assert recipe.skill.title, name
        assert recipe.skill.success, name


def test_overrides_are_applied_last_and_typed():
    recipe = Recipe.load(
        "weld-seam",
        [
            "ppo.lr=3e-4",
            "env.robot=ur5e",
            "ppo.hidden=[32, 32]",
            "ppo.total_steps=2e6",
            "env.randomise.latency_s=[0, 0.1]",
        ],
    )
    assert recipe.ppo.lr == 3e-4
    assert recipe.env.robot == "ur5e"
    assert recipe.ppo.hidden == (32, 32)
    assert recipe.ppo.total_steps == 2_000_000
    assert recipe.env.randomise["latency_s"] == (0.0, 0.1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ppo.lrr=1", "ppo.lrr is not a field - did you mean lr"),
        ("zzz.a=1", "zzz is not a field - there are: skill, env, ppo"),
        ("ppo.lr=fast", 'ppo.lr = "fast": input should be a valid number'),
        ("ppo.lr=-1", "ppo.lr = -1: input should be greater than 0"),
        ("ppo.lr=0.5", "ppo.lr = 0.5 is not between ppo.lr_min and ppo.lr_max"),
        ("ppo.num_envs=3.5", "ppo.num_envs = 3.5: input should be a valid integer"),
        ("ppo.num_envs=true", "ppo.num_envs = true: input should be a valid integer"),
        ("ppo.hidden=[]", "ppo.hidden"),
        ("ppo.hidden=[64, 0]", "ppo.hidden.1 = 0"),
        ("ppo.activation=silu", "'elu', 'tanh' or 'relu'"),
        ("ppo.minibatches=7", "ppo.minibatches = 7 does not divide"),
        (
            "env.randomise.latency_s=[0.2, 0.1]",
            "env.randomise.latency_s = [0.2, 0.1] has its low above its high",
        ),
        ("skill.name=Weld", "skill.name"),
        (f"validation.seed_first={EVALUATION_SEED}", "validation.seed_first"),
        (f"eval.seed_first={VALIDATION_SEED}", "eval.seed_first"),
        ("lr=1", "'lr=1' is not of the form section.field=value"),
        ("ppo.lr", "'ppo.lr' is not of the form section.field=value"),
    ],
)
def test_a_wrong_field_is_named(override, said):
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(PLAIN, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match=r"env\.id is missing"):
        Recipe.parse({"skill": {"name": "a/b"}, "env": {}})


def test_an_unknown_recipe_lists_the_near_names():
    with pytest.raises(UnknownNameError, match="did you mean weld-seam"):
        Recipe.load("weld-sem")


def test_an_environment_without_recipe_gets_the_defaults():
    recipe = Recipe.load("HalfCheetah-v5")
    assert (recipe.skill.name, recipe.env.id) == ("local/half-cheetah", "HalfCheetah-v5")
    assert Recipe.load("my_envs:me/PushT-v0").skill.name == "local/push-t"


def test_a_file_loads_by_path(tmp_path):
    file = tmp_path / "skill.toml"
    file.write_text('[skill]\nname = "me/mine"\n[env]\nid = "Reach-v0"\n')
    assert Recipe.load(file) == Recipe.load(tmp_path)
    file.write_text("[skill\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Recipe.load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Recipe.load(tmp_path / "none.toml")


def test_plain_types_make_the_same_recipe():
    recipe = Recipe.load("weld-seam", ["env.randomise.latency_s=[0, 0.1]"])
    assert Recipe.parse(json.loads(json.dumps(recipe.to_dict()))) == recipe
