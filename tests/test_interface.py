"""Signals, interfaces, and what keeps a skill from running on a robot."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from neuraverse.errors import ConfigError
from neuraverse.interface import FRAMES, UNITS, Interface, Offer, Requirements, Signal


def signal(**changes) -> Signal:
    return Signal(**({"name": "e_pos", "shape": (3,), "unit": "m", "frame": "W"} | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "e pos"}, "identifier"),
        ({"name": ""}, "identifier"),
        ({"name": "é"}, "identifier"),
        ({"name": "x" * 65}, "identifier"),
        ({"shape": (0,)}, "shape"),
        ({"shape": (-3,)}, "shape"),
        ({"shape": (64, 65)}, "4096"),
        ({"shape": (1,) * 9}, "shape"),
        ({"shape": (3.5,)}, "numbers"),
        ({"unit": "mm"}, "unknown unit 'mm'"),
        ({"unit": ""}, "unknown unit"),
        ({"unit": "m,m"}, "2 units for 3 elements"),
        ({"frame": "X"}, "frame 'X'"),
        ({"low": (0.0,)}, "low has 1 values for 3"),
        ({"high": (math.inf,) * 3}, "high is not finite"),
        ({"low": (math.nan,) * 3}, "low is not finite"),
        ({"low": ("a",) * 3}, "numbers"),
        ({"low": (1.0,) * 3, "high": (0.0,) * 3}, "low is above high"),
        ({"description": "\x1b[31mred"}, "description"),
        ({"description": "a\nb"}, "description"),
    ],
)
def test_a_malformed_signal_is_named(changes, says):
    with pytest.raises(ConfigError, match=r"signal") as caught:
        signal(**changes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation": ()}, "no observation signals"),
        ({"action": ()}, "no action signals"),
        ({"observation": (signal(), signal())}, "'e_pos' occurs twice"),
        ({"rate_hz": 0.0}, "rate"),
        ({"rate_hz": math.nan}, "rate"),
        ({"rate_hz": 10_001.0}, "rate"),
        ({"rate_hz": "fast"}, "rate"),
        ({"schema": "neuraverse.skill/2"}, "update neuraverse"),
    ],
)
def test_a_malformed_interface_is_an_error(interface, changes, says):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(interface, **changes)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_requirements_are_finite_and_not_negative(value):
    with pytest.raises(ConfigError, match="reach_m"):
        Requirements(reach_m=value)


def test_sizes_count_elements(interface):
    assert interface.observation_size == 3 + 3 + 6 + 6 + 6
    assert interface.action_size == 6


def test_a_robot_that_offers_everything_has_no_problem(interface, offer):
    assert interface.problems(offer) == []


def without(signals, name):
    return tuple(s for s in signals if s.name != name)


def changed(signals, name, **changes):
    return tuple(dataclasses.replace(s, **changes) if s.name == name else s for s in signals)


def test_each_mismatch_is_one_sentence(interface, offer):
    seen, does = offer.observation, offer.action
    cases = [
        ({"observation": without(seen, "seam")}, "observation seam: testbot does not have it"),
        (
            {"observation": changed(seen, "e_pos", shape=(2,))},
            "observation e_pos: shape is (3,) in the skill and (2,) on testbot",
        ),
        (
            {"observation": changed(seen, "e_rot", unit="1")},
            "observation e_rot: unit is rad in the skill and 1 on testbot",
        ),
        (
            {"action": changed(does, "twist", frame="B")},
            "action twist: frame is W in the skill and B on testbot",
        ),
        ({"max_rate_hz": 40.0}, "control rate: the skill needs 50 Hz, testbot has 40 Hz"),
        ({"reach_m": 0.5}, "reach: the skill needs 0.6 m, testbot has 0.5 m"),
        ({"reach_m": math.nan}, "reach: the skill needs 0.6 m, testbot has nan m"),
        ({"linear_speed_m_s": 0.05}, "tool speed: the skill needs 0.1 m/s, testbot has 0.05 m/s"),
    ]
    for changes, sentence in cases:
        assert interface.problems(dataclasses.replace(offer, **changes)) == [sentence]


def test_what_training_cannot_mend_is_compared(interface, offer):
    needs = Requirements(angular_speed_rad_s=3.0, wrench_sensor=True, grip_stroke_m=0.08)
    assert dataclasses.replace(interface, requires=needs).problems(offer) == [
        "tool rotation: the skill needs 3 rad/s, testbot has 2 rad/s",
        "grip stroke: the skill needs 0.08 m, testbot has 0 m",
        "wrench sensor: the skill needs one, testbot has none",
    ]


def test_rounding_in_a_data_sheet_is_forgiven(interface, offer):
    assert interface.problems(dataclasses.replace(offer, reach_m=0.6 * (1 - 5e-7))) == []
    assert interface.problems(dataclasses.replace(offer, reach_m=0.6 * (1 - 5e-6))) != []


def test_a_robot_may_offer_more_and_in_another_order(interface, offer):
    more = (*reversed(offer.observation), Signal(name="wrench", shape=(6,), unit="N"))
    assert interface.problems(dataclasses.replace(offer, observation=more)) == []


def test_the_digest_covers_what_bodies_must_agree_on_and_nothing_else(interface):
    first, *rest = interface.observation

    def digest(**changes):
        return dataclasses.replace(
            interface, observation=(dataclasses.replace(first, **changes), *rest)
        ).digest()

    same = interface.digest()
    assert digest(description="in other words") == same
    others = [
        digest(name="p"),
        digest(shape=(3, 1)),
        digest(unit="rad"),
        digest(frame="T"),
        digest(low=(0, 0, 0)),
    ]
    others.append(dataclasses.replace(interface, rate_hz=20.0).digest())
    others.append(dataclasses.replace(interface, requires=Requirements()).digest())
    others.append(dataclasses.replace(interface, observation=(*rest, first)).digest())
    assert len({same, *others}) == len(others) + 1


def test_the_digest_does_not_depend_on_how_a_number_is_spelt(interface):
    spelt = Interface(
        observation=list(interface.observation),
        action=[dataclasses.replace(interface.action[0], low=np.array(interface.action[0].low))],
        rate_hz=50,
        requires=Requirements(reach_m=np.float64(0.6), linear_speed_m_s=0.1),
    )
    assert spelt.digest() == interface.digest()
    assert spelt == interface
    json.dumps(spelt.to_dict())


def test_one_unit_for_all_equals_the_same_unit_for_each():
    assert signal(unit="m,m,m") == signal(unit="m")


finite = st.floats(-1e6, 1e6)


@st.composite
def signals(draw, name):
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    size = math.prod(shape)
    low = draw(st.none() | st.lists(finite, min_size=size, max_size=size))
    high = None if low is None else [v + draw(st.floats(0.0, 10.0)) for v in low]
    return Signal(
        name=name,
        shape=shape,
        unit=",".join(draw(st.lists(st.sampled_from(sorted(UNITS)), min_size=size, max_size=size))),
        frame=draw(st.sampled_from(sorted(FRAMES))),
        low=tuple(low or ()),
        high=tuple(high or ()),
    )


@st.composite
def interfaces(draw):
    return Interface(
        observation=tuple(draw(signals(f"o{i}")) for i in range(draw(st.integers(1, 4)))),
        action=tuple(draw(signals(f"a{i}")) for i in range(draw(st.integers(1, 2)))),
        rate_hz=draw(st.floats(0.1, 1000.0)),
        requires=Requirements(reach_m=draw(st.floats(0.0, 5.0)), wrench_sensor=draw(st.booleans())),
    )


@given(interfaces())
def test_json_brings_back_the_same_interface_and_digest(interface):
    again = TypeAdapter(Interface).validate_json(json.dumps(interface.to_dict()), strict=True)
    assert again == interface
    assert again.digest() == interface.digest()


def test_an_offer_is_read_from_json(offer):
    assert Offer.parse(json.dumps(dataclasses.asdict(offer))) == offer
    assert Offer.parse(json.dumps(dataclasses.asdict(offer)).encode()).digest() == offer.digest()
    plain = dataclasses.asdict(offer)
    for wrong, said in (
        ("{", "Invalid JSON"),
        ("[]", "it: Input should be an object"),
        (json.dumps({"robot": "arm"}), "max_rate_hz: Field required"),
        (json.dumps(plain | {"colour": "red"}), "colour"),
        (json.dumps(plain | {"reach_m": float("nan")}), "reach_m: Input should be a finite number"),
        (
            json.dumps(plain | {"action": [{"name": "twist", "shape": [6], "unit": "mm"}]}),
            "unknown unit 'mm'",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            Offer.parse(wrong)
