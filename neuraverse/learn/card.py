"""The model card: README.md of a skill, with Hugging Face front matter, written from the manifest alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

from neuraverse.manifest import SkillManifest
from neuraverse.skill import Skill


def model_card(manifest: SkillManifest, parent: Skill | None = None) -> str:
    """Markdown with YAML front matter.

    Args:
        manifest: What the card is about.
        parent: The skill that was fine-tuned, if one was.
    """
    return f"---\n{_front_matter(manifest, parent)}---\n\n{_body(manifest, parent)}"


def _front_matter(manifest: SkillManifest, parent: Skill | None) -> str:
    """YAML; every scalar is a JSON string or number, which YAML reads as the same."""
    text, score = json.dumps, manifest.evaluation
    tags = dict.fromkeys(("robotics", "reinforcement-learning", "neuraverse", *manifest.tags))
    lines = [
        "library_name: neuraverse",
        "pipeline_tag: robotics",
        f"license: {text(manifest.license.lower())}",
        f"tags: {text(list(tags))}",
    ]
    if parent is not None:
        lines += [f"base_model: {text(parent.name)}", "base_model_relation: finetune"]
    lines += [
        "model-index:",
        f"- name: {text(manifest.name)}",
        "  results:",
        '  - task: {"type": "robotics", "name": ' + text(manifest.title) + "}",
        f'    dataset: {{"type": {text(manifest.task.env_id)}, "name": {text(manifest.task.env_id)}}}',
        "    metrics:",
        f'    - {{"type": "success_rate", "name": "success, n = {score.episodes}", "value": {score.rate}}}',
    ]
    if "mean_return" in score.metrics:
        value = score.metrics["mean_return"]
        lines.append(f'    - {{"type": "mean_reward", "name": "mean return", "value": {value}}}')
    return "\n".join(lines) + "\n"


def _body(manifest: SkillManifest, parent: Skill | None) -> str:
    score, training, body = manifest.evaluation, manifest.training, manifest.body
    parts = [
        f"# {manifest.title}",
        manifest.description,
        f"**Simulation only**: nothing here was measured on a real robot. Trained on {body.robot}"
        + (f" as a child of `{parent.ref}` (`{parent.digest}`)." if parent else "."),
        f"Success: {manifest.task.success}",
        "## Score",
        f"Deterministic policy, {score.episodes} episodes on seeds {score.seed_first} to "
        f"{score.seed_first + score.seed_count - 1}, which training never saw: success {score.rate:.3f} "
        f"(Wilson 95 % lower bound {score.lower:.3f}).",
    ]
    if score.source is not None:
        parts.append(
            f"The parent on the same seeds: {score.source.rate:.3f} (lower bound {score.source.lower:.3f})."
        )
    if score.metrics:
        parts.append(_table(("figure", "value"), [(k, f"{v:.4g}") for k, v in sorted(score.metrics.items())]))
    parts.append("## Interface")
    rows = [
        (kind, f"`{s.name}`", str(list(s.shape)), s.unit.replace(",", ", "), s.frame, s.description)
        for kind, signals in (("in", manifest.interface.observation), ("out", manifest.interface.action))
        for s in signals
    ]
    parts.append(f"{manifest.interface.rate_hz:g} Hz, SI units; frames W workpiece, T tool, B base.")
    parts.append(_table(("", "signal", "shape", "unit", "frame", "what"), rows))
    if manifest.randomised:
        spread = [(k, f"{low:g}", f"{high:g}") for k, (low, high) in manifest.randomised.items()]
        parts += ["## Trained over", _table(("figure", "from", "to"), spread)]
        parts.append("A body outside these ranges should probe the skill first and fine-tune it if need be.")
    seeds = ", ".join(f"{seed}: {value:.3g}" for seed, value in training.seed_scores.items())
    parts += [
        "## Training",
        f"{training.algorithm}, {training.env_steps} environment steps, {training.wall_s:.0f} s of wall time "
        f"and {training.cpu_s:.0f} CPU seconds on {training.device}. Validation by seed: {seeds or 'none'}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
