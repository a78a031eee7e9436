"""The house holds: imports point one way, heavy packages stay in their rooms, a robot's import is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import neuraverse

ROOT = Path(__file__).parents[1]
CORE = [
    *("errors", "interface", "storage", "tensors", "graph", "policy", "manifest", "versions", "archive"),
    *("skill", "keys", "statement", "bundle", "trust"),
]
CHAIN = [*CORE, "client", "runtime", "cli"]
"""Each may import only what stands to its left."""

MAY_IMPORT = {room: set(CHAIN[:i]) for i, room in enumerate(CHAIN)} | {
    "registry": set(CORE),
    "sim": {"errors", "interface", "storage"},
    "learn": set(CORE),
    "fleet": {*CORE, "learn", "sim", "client"},
    "envs": {"errors", "interface", "sim"},
    "demo": {*CORE, "machine", "client", "registry", "sim", "learn", "fleet"},
    "machine": set(),
    "skills": set(),
}
LAZILY = {"cli": {"learn", "sim", "fleet", "registry", "demo"}}
"""What a room may import besides, but only inside a function."""

HOME_OF = {
    "fastapi": {"registry"},
    "starlette": {"registry"},
    "sqlalchemy": {"registry"},
    "uvicorn": {"registry"},
    "alembic": {"registry"},
    "asyncpg": {"registry"},
    "obstore": {"registry"},
    "prometheus_client": {"registry"},
    "pydantic_settings": {"registry"},
    "mujoco": {"sim"},
    "mjbatch": {"sim"},
    "ray": {"fleet"},
    "torch": {"sim", "learn", "fleet", "envs"},
    "gymnasium": {"sim", "learn", "fleet", "envs"},
    "onnx": {"learn"},
    "onnxruntime": {"policy"},
    "httpx": {"client", "cli"},
    "typer": {"cli"},
}
HEAVY = sorted({*HOME_OF, "matplotlib", "tensorboard", "jax", "scipy"} - {"httpx", "typer"})


def sources() -> list[tuple[str, Path]]:
    """Room and path of every module of ours."""
    found = [("envs", p) for p in (ROOT / "envs").rglob("*.py")]
    found += [("skills", p) for p in (ROOT / "skills").rglob("*.py")]
    for path in (ROOT / "neuraverse").rglob("*.py"):
        parts = path.relative_to(ROOT / "neuraverse").with_suffix("").parts
        if parts != ("__init__",):  # it imports from everywhere, when a name is first used
            found.append((parts[0], path))
    return sorted(found)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Dotted name of each import, and whether it happens when the module is loaded."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for part in ast.walk(tree)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
        for node in ast.walk(part)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "neuraverse" else [module]
        else:
            continue
        found += [(name, id(node) not in inner) for name in names]
    return found


def room_of(name: str) -> str:
    """The room that an import reaches, or nothing if it is no module of ours."""
    first, _, rest = name.partition(".")
    if first == "neuraverse":
        return rest.partition(".")[0]
    return {"neuraverse_envs": "envs", "neuraverse_skills": "skills"}.get(first, "")


def test_every_room_has_a_rule():
    assert {room for room, _ in sources()} <= MAY_IMPORT.keys()
    assert {"errors", "trust", "client", "sim", "learn", "envs"} <= {room for room, _ in sources()}


def test_imports_point_one_way():
    wrong = []
    for room, path in sources():
        for name, at_load in imports(path):
            target = room_of(name)
            allowed = MAY_IMPORT[room] | {room} | (set() if at_load else LAZILY.get(room, set()))
            if target and target not in allowed and target != "__version__":
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {name}")
    assert wrong == []


def test_heavy_packages_stay_in_their_rooms():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, path in sources()
        for name, at_load in imports(path)
        if (at_load or room != "cli") and room not in HOME_OF.get(name.partition(".")[0], {room})
    ]
    assert wrong == []


def test_no_module_loads_pickles():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for _, path in sources()
        for name, _ in imports(path)
        if name.partition(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    ]
    assert wrong == []


def fresh(program: str) -> dict:
    """What a new interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "statement",
    [
        "import neuraverse",
        "import neuraverse.client, neuraverse.runtime",
        "from neuraverse import Skill, pull, watch",
    ],
)
def test_a_robot_loads_nothing_heavy(statement):
    program = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert fresh(program) == []


def test_importing_the_client_takes_less_than_half_a_second():
    program = (
        "import time, json\nstart = time.process_time()\nimport neuraverse.client\n"
        "print(json.dumps(time.process_time() - start))"
    )
    # CPU seconds, not wall seconds; the least of three, as other processes only ever add to it.
    assert min(fresh(program) for _ in range(3)) < 0.5


def test_public_names_are_there_and_lazy():
    assert sorted(neuraverse.__all__) == sorted(
        ["Skill", "Trainer", "__version__", "fine_tune", "publish", "pull", "watch"]
    )
    assert set(neuraverse.__all__) <= set(dir(neuraverse))
    for name in neuraverse.__all__:
        assert getattr(neuraverse, name) is not None
    assert neuraverse.Skill.__module__ == "neuraverse.skill"
    with pytest.raises(AttributeError, match="has no attribute 'Robot'"):
        _ = neuraverse.Robot


def test_a_name_whose_extra_is_missing_says_which_to_install():
    program = """
import json, sys
sys.modules["torch"] = None  # as if it were not installed
import neuraverse
from neuraverse.errors import MissingExtraError
try:
    neuraverse.Trainer
except MissingExtraError as error:
    print(json.dumps(str(error)))
"""
    said = fresh(program)
    assert "neuraverse.Trainer needs the package 'torch'" in said
    assert "pip install 'neuraverse[train]'" in said
