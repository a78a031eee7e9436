"""Lineage as a graph, and what differs between two versions."""

from __future__ import annotations

import pytest

REF = "/v1/skills/acme/weld-seam"


@pytest.mark.storages
def test_lineage_both_ways(api, publish_new):
    a = publish_new(version="1.0.0")
    b = publish_new(version="1.1.0", seed=1, parents=[a.digest])
    c = publish_new(name="grind", seed=2, parents=[a.digest])
    d = publish_new(version="2.0.0", seed=3, parents=[b.digest, c.digest])
    publish_new(name="alone", seed=4)
    found = api.get(f"{REF}/1.1.0/lineage").json()
    assert found["root"] == b.digest
    assert {n["digest"] for n in found["nodes"]} == {a.digest, b.digest, d.digest}
    assert {tuple(e) for e in found["edges"]} == {(a.digest, b.digest), (b.digest, d.digest)}
    whole = api.get(f"{REF}/1.0.0/lineage").json()
    assert {n["name"] for n in whole["nodes"]} == {"acme/weld-seam", "acme/grind"}
    assert {tuple(e) for e in whole["edges"]} == {
        (a.digest, b.digest),
        (a.digest, c.digest),
        (b.digest, d.digest),
        (c.digest, d.digest),
    }


def test_a_diff_says_what_differs(api, publish_new, tiny):
    first = publish_new(version="1.0.0")
    second = publish_new(
        version="1.1.0",
        seed=1,
        randomised={"servo_hz": (2.0, 12.0)},
        evaluation=first.manifest.evaluation.model_copy(update={"metrics": {"lateral_mm": 0.3}}),
    )
    found = api.get(f"{REF}/diff", params={"from": "1.0.0", "to": "latest"}).json()
    assert (found["from"], found["to"]) == ("1.0.0", "1.1.0")
    assert found["interface"] == []
    assert found["evaluation"] == [{"field": "metrics.lateral_mm", "from": 0.41, "to": 0.3}]
    fields = {each["field"] for each in found["training"]}
    assert {"randomised.servo_hz", "randomised.latency_s", "randomised.tool_mass_kg"} <= fields
    (weights,) = (f for f in found["files"] if f["field"] == "model.safetensors.sha256")
    assert weights["to"] == second.manifest.files["model.safetensors"].sha256
    same = api.get(f"{REF}/diff", params={"from": "1.0.0", "to": "1.0.0"}).json()
    assert not any(same[part] for part in ("interface", "evaluation", "training", "files"))


def test_diffs_that_cannot_be(api, publish_new, problem):
    publish_new()
    problem(api.get(f"{REF}/diff", params={"from": "1.0.0"}), 400)
    problem(api.get(f"{REF}/diff", params={"from": "1.0.0", "to": "9.9.9"}), 404)
    problem(api.get("/v1/skills/acme/no/diff", params={"from": "1.0.0", "to": "1.0.0"}), 404)
    problem(api.get(f"{REF}/diff", params={"from": "1.0.0", "to": "%"}), 400)
