"""Settings: what is refused, what is taken, and what comes back from JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt import Hold, Preserve, Schedule, Simplify, TopoConfig
from topoopt.config import Engine, TopoOptions
from topoopt.curvature.tracker import ENGINES
from topoopt.errors import ConfigError

WRONG: dict[str, list[Any]] = {
    "mode": ["faster", 3, None, b"hold", ["hold"], {"policy": "hold"}],
    "every": [0, -1, 1.0, 2.5, True, "10", None, np.float64(3), float("nan"), [10], 10**400],
    "budget": [0, 0.0, -0.1, 1.5, "0.1", True, float("nan"), float("inf"), [0.1], np.bool_(True)],
    "homology": [-2, 3, 1.0, True, "1", None],
    "max_points": [1, 2.0, "4096", None, True, float("inf")],
    "include": [3, b"a*", ["a", 3], {"a": 1}, [None], True],
    "exclude": [3, b"a*", ["a", 3], {"a": 1}, [None], True],
    "estimator": ["best", None, 1, "Auto"],
    "seed": [-1, 2**64, 0.0, "0", None, True],
    "strict": [1, 0, "yes", None, 1.0],
    "products": [1, 8.0, "8", None, True],
    "reading_products": [0, 2.0, "2", None, True],
    "engine": ["fast", None, 2, "finite difference"],
    "field": [1, "no", None],
    "per_group": [1, "no", None],
    "keep": ["disk", None, 0, True],
    "snapshot": [1, "no", None],
    "wait": [1, "no", None],
}


def test_every_field_is_tried() -> None:
    assert set(WRONG) == {f.name for f in fields(TopoConfig)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_with_what_to_give(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as raised:
        TopoConfig(**{name: value})
    assert "give" in str(raised.value) or "neither" in str(raised.value)
    assert len(str(raised.value)) < 600


def test_numpy_scalars_are_taken_as_pythons() -> None:
    config = TopoConfig(
        every=np.int64(7),  # type: ignore[arg-type]
        budget=np.float32(0.5),  # type: ignore[arg-type]
        strict=np.bool_(True),  # type: ignore[arg-type]
        homology=np.uint8(2),  # type: ignore[arg-type]
    )
    assert [type(v) for v in (config.every, config.budget, config.strict, config.homology)] == [int, float, bool, int]
    assert config == TopoConfig(every=7, budget=0.5, strict=True, homology=2)
    assert TopoConfig.from_json(config.to_json()) == config


def test_one_pattern_or_several() -> None:
    assert TopoConfig(include="a*").include == ("a*",)
    assert TopoConfig(include=["a*", "b"]).include == ("a*", "b")


def test_the_typed_options_are_the_fields() -> None:
    hints = get_type_hints(TopoOptions)
    assert list(hints) == [f.name for f in fields(TopoConfig)]
    assert hints == get_type_hints(TopoConfig)


def test_the_engines_are_those_that_there_are() -> None:
    assert get_args(Engine) == ("auto", *ENGINES)


@pytest.mark.parametrize(
    ("option", "says"),
    [("evry", "did you mean 'every'"), ("modes", "did you mean 'mode'"), ("xyz", "TopoConfig has: mode, every")],
)
def test_a_typo_is_answered_with_what_may_be_meant(option: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TopoConfig.from_options(None, {option: 1})


def test_options_go_over_a_config() -> None:
    assert TopoConfig.from_options(TopoConfig(every=7, seed=3), {"every": 9}) == TopoConfig(every=9, seed=3)
    with pytest.raises(ConfigError, match="is no TopoConfig"):
        TopoConfig.from_options({"every": 3}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["hold", Hold(0.3), Schedule({0: Simplify(), 0.3: Preserve(0.5)})], ids=repr)
def test_a_config_comes_back_from_json(mode: Any) -> None:
    config = TopoConfig(mode=mode, every=3, budget=None, include=["a"], keep="none", snapshot=False, reading_products=4)
    assert TopoConfig.from_json(config.to_json()) == config


HOSTILE = [
    "",
    "{",
    "[]",
    "3",
    "null",
    '{"every": NaN}',
    '{"every": "3"}',
    '{"mode": {}}',
    '{"mode": {"policy": "schedule"}}',
    '{"mode": {"policy": "schedule", "phases": 3}}',
    '{"mode": {"policy": "schedule", "phases": [[0, {"policy": "hold", "x": 1}]]}}',
    '{"mode": {"policy": ["hold"]}}',
    '{"mode": {"policy": "hold", "target": "x"}}',
    '{"every": 1' + "0" * 5000 + "}",
    "[" * 100_000,
    '{"a": ' + "[" * 100_000,
    " " * (2**20 + 1),
    b"\xff\xfe{",
    None,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:40])
def test_json_of_others_is_refused_in_one_way(text: Any) -> None:
    with pytest.raises(ConfigError):
        TopoConfig.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
policies = st.dictionaries(st.sampled_from(["policy", "phases", "target", "floor", "guard"]), json_values, max_size=4)
known = st.dictionaries(st.sampled_from(sorted(WRONG)), json_values | policies, max_size=4)


@settings(max_examples=300, deadline=None)
@given(known.map(json.dumps) | json_values.map(json.dumps) | st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_a_config_or_a_config_error(text: str | bytes) -> None:
    try:
        config = TopoConfig.from_json(text)
    except ConfigError:
        return
    assert TopoConfig.from_json(config.to_json()) == config
