"""Fixtures for every room: a small, valid, signed skill without torch, and a store of keys."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from neuraverse.interface import Interface, Offer, Requirements, Signal
from neuraverse.manifest import (
    Body,
    Evaluation,
    Network,
    SkillManifest,
    TaskInfo,
    Training,
    wilson_lower,
)
from neuraverse.policy import output_name
from neuraverse.skill import Skill
from neuraverse.trust import KeyStore, sign

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

# Tests of tenants close their registries; in all others, nobody has to sign in.
os.environ["NEURAVERSE_REGISTRY_OPEN"] = "true"

# A shell starts background jobs with Ctrl-C ignored, and children inherit that; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _numbers_keep_their_meaning():
    """Whoever flushes denormal numbers to zero for speed must leave them as they were, in this process."""
    yield
    assert np.float64(1e-310) * np.float64(1.0) > 0.0, "denormal numbers are still flushed to zero"


_LONG = ("test_readme", "test_crash", "test_learning", "test_cluster", "test_jobs", "test_stateful")


def pytest_collection_modifyitems(items):
    """The longest files first: with several workers, what begins last should be short."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


OPSET = 20
TWIST = "m/s,m/s,m/s,rad/s,rad/s,rad/s"
SCALE = (0.1, 0.1, 0.1, 0.5, 0.5, 0.5)
INTERFACE = Interface(
    observation=(
        Signal(name="e_pos", shape=(3,), unit="m", frame="W"),
        Signal(name="e_rot", shape=(3,), unit="rad", frame="W"),
        Signal(name="twist", shape=(6,), unit=TWIST, frame="W"),
        Signal(name="seam", shape=(6,), unit="m", frame="W", description="next two points"),
        Signal(name="prev_action", shape=(6,), unit="1"),
    ),
    action=(
        Signal(name="twist", shape=(6,), unit=TWIST, frame="W", low=tuple(-s for s in SCALE), high=SCALE),
    ),
    rate_hz=50.0,
    requires=Requirements(reach_m=0.6, linear_speed_m_s=0.1),
)
OFFER = Offer(
    robot="testbot",
    max_rate_hz=100.0,
    reach_m=0.9,
    linear_speed_m_s=1.0,
    angular_speed_rad_s=2.0,
    observation=INTERFACE.observation,
    action=INTERFACE.action,
)


def tiny_weights(seed: int = 0, hidden: tuple[int, ...] = (8, 8), interface: Interface = INTERFACE) -> dict:
    """Normaliser, actor and critic of a small network, float32 by name."""
    rng = np.random.default_rng(seed)
    n_in, n_out = interface.observation_size, interface.action_size
    weights = {"normaliser.mean": rng.normal(size=n_in) * 0.1, "normaliser.std": rng.uniform(0.5, 2.0, n_in)}
    for net, sizes in (("actor", (n_in, *hidden, n_out)), ("critic", (n_in, *hidden, 1))):
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            weights[f"{net}.{i}.weight"] = rng.normal(size=(b, a)) / np.sqrt(a)
            weights[f"{net}.{i}.bias"] = rng.normal(size=b) * 0.1
    return {name: value.astype(np.float32) for name, value in weights.items()}


def tiny_onnx(weights: dict, interface: Interface = INTERFACE) -> bytes:
    """Named inputs, concatenated, normalised, through a tanh MLP, clipped, scaled, named outputs."""
    limits = [s.high or (1.0,) * s.size for s in interface.action]
    constants = dict(weights)
    constants["scale"] = np.float32([v for high in limits for v in high])
    constants["one"], constants["minus_one"] = np.float32(1.0), np.float32(-1.0)
    inputs, outputs, flat, nodes = [], [], [], []
    for s in interface.observation:
        inputs.append(helper.make_tensor_value_info(s.name, TensorProto.FLOAT, ["N", *s.shape]))
        nodes.append(helper.make_node("Flatten", [s.name], [f"flat_{s.name}"], axis=1))
        flat.append(f"flat_{s.name}")
    nodes += [
        helper.make_node("Concat", flat, ["x"], axis=1),
        helper.make_node("Sub", ["x", "normaliser.mean"], ["centred"]),
        helper.make_node("Div", ["centred", "normaliser.std"], ["h0"]),
    ]
    layers = sum(name.startswith("actor.") and name.endswith(".weight") for name in weights)
    for i in range(layers):
        last = i == layers - 1
        names = [f"h{i}", f"actor.{i}.weight", f"actor.{i}.bias"]
        nodes.append(helper.make_node("Gemm", names, ["mean" if last else f"z{i}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Tanh", [f"z{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("Clip", ["mean", "minus_one", "one"], ["unit"]))
    nodes.append(helper.make_node("Mul", ["unit", "scale"], ["si"]))
    constants["sizes"] = np.array([s.size for s in interface.action], np.int64)
    nodes.append(
        helper.make_node("Split", ["si", "sizes"], [f"part_{s.name}" for s in interface.action], axis=1)
    )
    for s in interface.action:
        constants[f"shape_{s.name}"] = np.array([-1, *s.shape], np.int64)
        nodes.append(
            helper.make_node("Reshape", [f"part_{s.name}", f"shape_{s.name}"], [output_name(s.name)])
        )
        outputs.append(helper.make_tensor_value_info(output_name(s.name), TensorProto.FLOAT, ["N", *s.shape]))
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(v, name) for name, v in constants.items() if name in used]
    graph = helper.make_graph(nodes, "policy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {"observation_names": ",".join(s.name for s in interface.observation)})
    return model.SerializeToString()


def tiny_manifest(weights: dict, interface: Interface = INTERFACE, **changes) -> SkillManifest:
    """A valid manifest without files; `changes` replace or add fields."""
    hidden = tuple(len(w) for name, w in weights.items() if name.startswith("actor.") and w.ndim == 2)[:-1]
    parameters = sum(w.size for w in weights.values())
    fields = {
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "title": "Follow a seam",
        "license": "Apache-2.0",
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "interface": interface,
        "body": Body(robot="testbot", dof=7, servo_hz=8.0, latency_s=0.01, tool_mass_kg=1.2),
        "randomised": {"servo_hz": (4.0, 12.0), "latency_s": (0.0, 0.03), "tool_mass_kg": (0.8, 1.6)},
        "task": TaskInfo(env_id="neuraverse_envs:neuraverse/WeldSeam-v0", success="the seam is welded"),
        "network": Network(hidden=hidden, activation="tanh", parameters=parameters, opset=OPSET),
        "evaluation": Evaluation(
            episodes=100,
            successes=95,
            rate=0.95,
            lower=wilson_lower(95, 100),
            seed_first=2_000_000_000,
            seed_count=100,
            metrics={"lateral_mm": 0.41},
        ),
        "training": Training(
            algorithm="ppo",
            recipe={"ppo": {"lr": 1e-3}},
            seeds=(0, 1),
            env_steps=1000,
            wall_s=1.5,
            cpu_s=2.5,
            device="cpu",
        ),
        "versions": {"numpy": np.__version__},
        "files": {},
        "tags": ("welding",),
    }
    return SkillManifest.build(**(fields | changes))


def tiny_files(weights: dict, interface: Interface = INTERFACE) -> dict[str, bytes]:
    """The bytes of every blob of a small skill."""
    return {
        "model.safetensors": safetensors.numpy.save(weights),
        "policy.onnx": tiny_onnx(weights, interface),
        "evaluation.json": json.dumps({"successes": 95, "episodes": 100}).encode(),
        "curve.json": json.dumps({"env_steps": [0, 1000], "success": [0.0, 0.95]}).encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n# Follow a seam\n",
    }


@pytest.fixture(scope="session")
def interface() -> Interface:
    """24 observation numbers in five signals, one twist commanded, 50 Hz."""
    return INTERFACE


@pytest.fixture(scope="session")
def offer() -> Offer:
    """What a robot offers that can run `interface`."""
    return OFFER


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The parts of which tests build skills: ``weights``, ``onnx``, ``manifest`` and ``files``."""
    return SimpleNamespace(weights=tiny_weights, onnx=tiny_onnx, manifest=tiny_manifest, files=tiny_files)


@pytest.fixture(scope="session")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    """The key store of a publisher, with the key "default"."""
    store = KeyStore(tmp_path_factory.mktemp("publisher"))
    store.new("default")
    return store


@pytest.fixture
def key_store(tmp_path: Path, publisher: KeyStore) -> KeyStore:
    """The key store of a robot that trusts the publisher for acme and has no key of its own."""
    store = KeyStore(tmp_path / "robot-home")
    store.trust(publisher.public_key().pem, "acme")
    return store


@pytest.fixture(scope="session")
def make_skill(publisher: KeyStore):
    """Write a small valid signed skill: ``make_skill(path, org=, name=, version=, parents=, seed=, key=)``.

    `key` is the path of a private key; the publisher's if not given, unsigned if None. Other keywords replace
    fields of the manifest.
    """
    default = publisher.private_key_path("default")

    def make(
        path: Path, org="acme", name="weld-seam", version="1.0.0", parents=(), seed=0, key=default, **changes
    ) -> Skill:
        weights = tiny_weights(seed)
        fields = {"name": f"{org}/{name}", "version": version, "parents": tuple(parents)} | changes
        manifest = tiny_manifest(weights, **fields)
        signer = None if key is None else functools.partial(sign, private_key_path=key)
        return Skill.write(path, manifest, tiny_files(weights), sign=signer)

    return make


@pytest.fixture
def tiny_skill(tmp_path: Path, make_skill) -> Skill:
    """acme/weld-seam@1.0.0, signed by the publisher."""
    return make_skill(tmp_path / "tiny-skill")
