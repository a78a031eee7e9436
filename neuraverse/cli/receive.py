"""Receive: search, show, watch, pull, verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import RECEIVE, example
from neuraverse.cli.output import Out, note, score_json, score_words
from neuraverse.cli.watch import watch
from neuraverse.errors import ContentError, UsageError

if TYPE_CHECKING:
    from neuraverse.client import Client
    from neuraverse.manifest import Score, SkillManifest

_PLACES = {"field": "the field"}
_ANCESTORS = 100  # a graph that a publisher made: bounded


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        "search",
        rich_help_panel=RECEIVE,
        epilog=example(
            "neuraverse search weld seam", "neuraverse search --tag welding --success 0.9 --runs-on ur5e"
        ),
    )(search)
    app.command("list", hidden=True, epilog=example("neuraverse list"))(search)
    app.command("show", rich_help_panel=RECEIVE, epilog=example("neuraverse show acme/weld-seam"))(show)
    app.command(
        "lineage", rich_help_panel=RECEIVE, epilog=example("neuraverse lineage acme/weld-seam@1.2.0")
    )(lineage)
    app.command(
        "diff", rich_help_panel=RECEIVE, epilog=example("neuraverse diff acme/weld-seam 1.0.0 1.1.0")
    )(diff)
    app.command(
        "watch",
        rich_help_panel=RECEIVE,
        epilog=example(
            "neuraverse watch acme/weld-seam",
            "neuraverse watch --after 0",
            "neuraverse watch acme/weld-seam@stable --apply --into skills --health ./still-well",
        ),
    )(watch)
    app.command(
        "pull", rich_help_panel=RECEIVE, epilog=example("neuraverse pull acme/weld-seam@1.0.0 --robot ur5e")
    )(pull)
    app.command(
        "verify",
        rich_help_panel=RECEIVE,
        epilog=example("neuraverse verify ./skill", "neuraverse verify acme/weld-seam"),
    )(verify)


def search(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORD", help="Whole words that must all occur; everything without.", show_default=False
        ),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="ID", help="Environment id.", show_default=False)
    ] = "",
    robot: Annotated[
        str, typer.Option("--robot", metavar="NAME", help="Body that it was trained on.", show_default=False)
    ] = "",
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="May be given again: all must be there.")
    ] = None,
    license: Annotated[
        str, typer.Option("--license", metavar="SPDX", help="Such as Apache-2.0.", show_default=False)
    ] = "",
    org: Annotated[
        str, typer.Option("--org", metavar="ORG", help="Only of this organisation.", show_default=False)
    ] = "",
    success: Annotated[
        float,
        typer.Option("--success", metavar="RATE", min=0.0, max=1.0, help="Proven at least so far, 0 to 1."),
    ] = 0.0,
    interface: Annotated[
        str, typer.Option("--interface", metavar="DIGEST", help="sha256:HEX of it.", show_default=False)
    ] = "",
    runs_on: Annotated[
        str | None,
        typer.Option("--runs-on", metavar="ROBOT", help="Only what this robot can run; named as for pull."),
    ] = None,
    tool: options.Tool = None,
    env: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="ID",
            help="Task whose cell --runs-on stands in; all that come along if not given.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 100,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Find skills by words in name, title, description, tags, robot or task; list is the same.

    The best proven come first: by the 95 % lower bound of success in simulation, or in the field once robots
    have reported 100 episodes.
    """
    from neuraverse.cli.cell import offer_here
    from neuraverse.client import Client
    from neuraverse.client.finding import Facets

    out = Out(json)
    if runs_on is None and (tool or env):
        raise UsageError("--tool and --env are for a robot that runs it", remedy="name it with --runs-on")
    facets = Facets(
        task=task, robot=robot, tags=tag or (), license=license, org=org, success=success, interface=interface
    )
    offer = None if runs_on is None else offer_here(runs_on, tool, env)
    with Client(registry) as client:
        words = " ".join(query or ())
        found = (
            client.search(words, limit=limit + 1, **facets)
            if offer is None
            else client.runnable(offer, words, limit=limit + 1, **facets)
        )
        url = client.url
    out.table(
        ("skill", "title", "robot", "success", "n", "proven", "in the field"),
        [
            (
                *(f"{s.name}@{s.version}", s.title, s.robot, f"{s.rate:.1%}", str(s.n)),
                f"{s.evidence.bound:.1%} in {_PLACES.get(s.evidence.source, s.evidence.source)}",
                "" if s.field is None else f"{s.field.successes / s.field.n:.1%} of {s.field.n}",
            )
            for s in found[:limit]
        ],
    )
    if not found:
        asked = query or offer is not None or any(facets.values())
        out.line(f"no skill at {url} matches" if asked else f"no skill at {url} yet")
    if len(found) > limit:
        note(f"these are the best {limit}; there are more: --limit N")
    out.json([dataclasses.asdict(s) for s in found[:limit]])


def show(ref: options.Ref, registry: options.Registry = None, json: options.Json = None) -> None:
    """Show what a skill is: interface, body, score, cost, lineage. Who signed it is for verify to check."""
    from neuraverse.cli.cell import settle
    from neuraverse.client import Client
    from neuraverse.client.refs import is_path
    from neuraverse.manifest import MAX_MANIFEST_BYTES, SkillManifest, digest_of
    from neuraverse.skill import MANIFEST
    from neuraverse.storage import read_regular

    out = Out(json)
    if is_path(ref):
        data = read_regular(Path(ref).expanduser() / MANIFEST, MAX_MANIFEST_BYTES)
        ancestors: list[tuple[str, SkillManifest]] = []
        children: list[str] = []
        field = None
    else:
        with Client(registry) as client:
            found = settle(client, ref)
            data = client.manifest(found.digest)
            ancestors = _ancestors(client, SkillManifest.parse(data))
            standing = client.standing(found)
        children, field = standing["children"], _field_score(standing)
    manifest = SkillManifest.parse(data)
    out.line(f"{manifest.ref}  {digest_of(data)}")
    if manifest.description:
        out.line(manifest.description)
    out.fields(_facts(manifest, field))
    out.table(
        ("signal", "", "shape", "unit", "frame", "means"),
        [
            (s.name, kind, str(s.shape), s.unit, s.frame, s.description)
            for kind, signals in (
                ("observed", manifest.interface.observation),
                ("commanded", manifest.interface.action),
            )
            for s in signals
        ],
    )
    for digest, parent in ancestors:
        out.line(f"descends from {parent.ref}  {digest}  success {score_words(parent.evaluation.score)}")
    if not ancestors:
        out.fields([("parents", " ".join(manifest.parents))])
    out.fields([("children", " ".join(children))])
    out.json(
        {
            "digest": digest_of(data),
            "manifest": manifest.model_dump(mode="json"),
            "ancestors": [
                {"skill": m.ref, "digest": d, "success": score_json(m.evaluation.score)} for d, m in ancestors
            ],
            "children": children,
            "field": score_json(field),
        }
    )


def lineage(ref: options.Ref, registry: options.Registry = None, json: options.Json = None) -> None:
    """Show what a skill descends from and what descends from it."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client:
        found = client.lineage(ref)
    nodes = {node["digest"]: node for node in found["nodes"]}
    parents: dict[str, list[str]] = {}
    for parent, child in found["edges"]:
        parents.setdefault(child, []).append(parent)
    out.table(
        ("", "skill", "95 % lower", "state", "parents"),
        [
            (
                "→" if digest == found["root"] else "",
                f"{node['name']}@{node['version']}",
                f"{node['lower']:.1%}",
                node["state"],
                ", ".join(f"{nodes[p]['name']}@{nodes[p]['version']}" for p in parents.get(digest, ())),
            )
            for digest, node in nodes.items()
        ],
    )
    out.json(found)


def diff(
    name: Annotated[str, typer.Argument(metavar="ORG/SKILL", help="The skill.", show_default=False)],
    old: Annotated[str, typer.Argument(metavar="FROM", help="A version or alias.", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="TO", help="Another one.", show_default=False)],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Show what differs between two versions: interface, evaluation, training, files."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client:
        found = client.diff(name, old, new)
    parts = ("interface", "evaluation", "training", "files")
    out.line(f"{name}: {found['from']} → {found['to']}")
    out.table(
        ("part", "field", "from", "to"),
        [
            (part, each["field"], _short(each["from"]), _short(each["to"]))
            for part in parts
            for each in found[part]
        ],
    )
    if not any(found[part] for part in parts):
        out.line("nothing that matters differs")
    out.json(found)


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _ancestors(client: Client, manifest: SkillManifest) -> list[tuple[str, SkillManifest]]:
    """Digest and manifest of parents, grandparents and so on, the nearest first."""
    from neuraverse.manifest import SkillManifest as Manifest

    found: dict[str, SkillManifest] = {}
    waiting = list(manifest.parents)
    while waiting and len(found) < _ANCESTORS:
        digest = waiting.pop(0)
        if digest not in found:
            found[digest] = Manifest.parse(client.manifest(digest))
            waiting += found[digest].parents
    return list(found.items())


def _field_score(standing: dict[str, Any]) -> Score | None:
    from neuraverse.manifest import Score

    field = standing.get("field")
    return None if field is None else Score.of(field["successes"], field["n"])


def _facts(manifest: SkillManifest, field: Score | None) -> list[tuple[str, str]]:
    body, training, needs = manifest.body, manifest.training, manifest.interface.requires
    spread = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in manifest.randomised.items())
    return [
        ("title", manifest.title),
        ("license", manifest.license),
        ("created", manifest.created.isoformat()),
        ("task", manifest.task.env_id),
        ("success means", manifest.task.success),
        ("success", score_words(manifest.evaluation.score)),
        ("field", score_words(field)),
        ("parent's", score_words(manifest.evaluation.source)),
        (
            "body",
            f"{body.robot}: {body.dof} joints, servo {body.servo_hz:g} Hz,"
            f" latency {body.latency_s * 1e3:g} ms, tool {body.tool_mass_kg:g} kg",
        ),
        ("trained over", spread),
        (
            "requires",
            f"{manifest.interface.rate_hz:g} Hz, reach {needs.reach_m:g} m,"
            f" tool speed {needs.linear_speed_m_s:g} m/s and {needs.angular_speed_rad_s:g} rad/s",
        ),
        ("network", f"{' × '.join(map(str, manifest.network.hidden))}, {manifest.network.activation}"),
        ("cost", f"{training.env_steps:,} steps, {training.wall_s:.0f} s, {training.cpu_s:.0f} CPU s"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]


def pull(
    ref: options.Ref,
    robot: options.Robot = None,
    tool: options.Tool = None,
    env: options.Env = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no network; take what REF meant before from the cache.")
    ] = False,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Download a skill and print its folder, or refuse it as soon as anything is wrong.

    Checked are signature and trust, then with --robot whether the robot can supply the interface, then every
    file. No weight is read before all of this holds. A pull that was cut goes on.
    """
    from neuraverse.cli.cell import fetch, manifest_of, offer_of

    out = Out(json)
    if robot is None and (tool or env):
        raise UsageError("--tool and --env are for checking a robot", remedy="name it with --robot")
    offer = None
    if robot is not None:
        manifest, ref = manifest_of(ref, registry, offline=offline)
        offer = offer_of(manifest, robot, tool, env)
    skill = fetch(ref, registry, offer, offline=offline)
    out.fields([("skill", skill.ref), ("digest", skill.digest), ("folder", str(skill.path))])
    out.json({"skill": skill.ref, "digest": skill.digest, "path": str(skill.path)})


def verify(ref: options.Ref, registry: options.Registry = None, json: options.Json = None) -> None:
    """Check a skill whole: every file, its signature, and that you trust the key; exit 1 if not."""
    from neuraverse.cli.cell import fetch
    from neuraverse.client.refs import is_path
    from neuraverse.skill import Skill
    from neuraverse.trust import verify_skill

    out = Out(json)
    try:
        local = is_path(ref) or Path(ref).is_dir()
        skill = Skill.open(Path(ref).expanduser(), admit=verify_skill) if local else fetch(ref, registry)
        fingerprint = verify_skill(skill)
    except ContentError as error:
        out.json(
            {"ok": False, "error": type(error).__name__, "message": error.message, "remedy": error.remedy}
        )
        raise
    out.line(f"{skill.ref} is good")
    out.fields([("digest", skill.digest), ("signed by", f"{fingerprint}, trusted for {skill.manifest.org}")])
    out.json({"ok": True, "skill": skill.ref, "digest": skill.digest, "signed_by": fingerprint})
