"""A researcher: learn a skill, score it, seal it, publish it.

    neuraverse serve --data registry &
    python examples/researcher.py --steps 400000

Add your own settings to the recipe by overrides, such as "ppo.lr=3e-4".
"""

import argparse

import neuraverse
from neuraverse.learn import Recipe, Trainer, evaluate, make_env, seal
from neuraverse.trust import KeyStore

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400_000)
parser.add_argument("--episodes", type=int, default=1000)
parser.add_argument("--out", default="runs/researcher")
parser.add_argument("overrides", nargs="*", help="such as ppo.lr=3e-4")
args = parser.parse_args()

recipe = Recipe.load("weld-seam", ["skill.name=lab/weld-seam", *args.overrides])
trainer = Trainer.from_recipe(recipe, seed=0, run_dir=f"{args.out}/run")  # resumes when run again
result = trainer.fit(args.steps, on_progress=lambda p: print(f"{p.env_steps:,} steps, return {p.ep_return}"))

scored = evaluate(
    result.policy,
    make_env(recipe.env, min(250, args.episodes)),
    episodes=args.episodes,
    seed_first=recipe.eval.seed_first,
)
print("success", scored.score, "median lateral error [mm]", scored.metrics["lateral_mm_median"])

keys = KeyStore()
if not any(key.name == "default" for key in keys.list()):
    keys.new("default")
key = keys.private_key_path("default")
skill = seal(result, recipe, scored, f"{args.out}/skill", env=make_env(recipe.env, 1), key=key)
print("published", neuraverse.publish(skill.path))
