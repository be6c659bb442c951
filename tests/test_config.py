"""Configuration: to JSON and back, overrides read by their annotations, errors that name the nearest field."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.budget import Budget
from nomoat.core.config import fingerprint, from_json, override, to_json
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Optimizer, Recipe, Ref


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Norm:
    epsilon: float = 1e-5
    kind_of: Literal["rms", "layer"] = "rms"


GPT2 = Norm(1e-5, "layer")


@dataclass(frozen=True)
class Inner:
    width: int = 8
    mixers: str | tuple[str, ...] = "attention"
    window: int | None = None
    norm: Norm = Norm()
    colour: Colour = Colour.RED
    causal: bool = True
    scale: float | None = None
    where: Path = Path("here")


@dataclass(frozen=True)
class Outer:
    inner: Any = Inner()
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: tuple[int, ...] = ()
    named: dict[str, float] = field(default_factory=dict)
    budget: Budget = Budget.parse("5steps")
    start: Ref | None = None
    text: str = ""


floats = st.floats(allow_nan=False)
plain = st.one_of(st.none(), st.booleans(), st.integers(), floats, st.text())
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5) | st.just("type"), inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=2),
        st.builds(Outer, inner=inner, text=st.text()),
    ),
    max_leaves=12,
)
inners = st.builds(
    Inner,
    width=st.integers(),
    mixers=st.text() | st.lists(st.text()).map(tuple),
    window=st.none() | st.integers(),
    norm=st.builds(Norm, epsilon=floats),
    colour=st.sampled_from(Colour),
    scale=st.none() | floats,
    where=st.sampled_from([Path("a/b"), Path("/c"), Path()]),
)


@given(st.one_of(values, inners))
def test_what_is_written_is_read_back_equal(value: Any) -> None:
    text = json.dumps(to_json(value), allow_nan=False)
    assert from_json(json.loads(text)) == value


@given(inners, inners)
def test_fingerprints_are_equal_exactly_where_the_values_are(one: Inner, other: Inner) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (to_json(one) == to_json(other))
    assert len(fingerprint(one)) == 64


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from nomoat.core import config, recipe; print(config.fingerprint(recipe.Optimizer()))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {fingerprint(Optimizer())}


def test_infinity_is_strict_json() -> None:
    assert from_json(json.loads(json.dumps(to_json((float("inf"), 1.0)), allow_nan=False))) == (float("inf"), 1.0)


@pytest.mark.parametrize("value", [object(), print, {1, 2}, b"bytes"])
def test_what_cannot_be_read_back_is_refused_when_it_is_written(value: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be saved"):
        to_json(value)


def test_unknown_field_names_the_nearest() -> None:
    data = to_json(Optimizer())
    data["lerning_rate"] = 1.0
    with pytest.raises(ConfigError, match=r"no field `lerning_rate`.*did you mean `learning_rate`"):
        from_json(data)


def test_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="Recipe needs family, data, budget, batch_size"):
        from_json({"type": "nomoat.core.recipe:Recipe", "about": "x"})


@pytest.mark.parametrize("name", ["antigravity:geohash", "this:x", "nomoat_evil.x:Y", "lib2to3.pytree:Node"])
def test_reading_a_run_imports_nothing_but_nomoat(name: str) -> None:
    module = name.partition(":")[0]
    assert module not in sys.modules
    with pytest.raises(ConfigError, match="not part of nomoat"):
        from_json({"type": name})
    assert module not in sys.modules


@pytest.mark.parametrize("name", ["os:system", "nomoat.core.run:Run", "nomoat.core.config:json", "nomoat:nothing"])
def test_only_configurations_are_built(name: str) -> None:
    with pytest.raises(ConfigError):
        from_json({"type": name})


@pytest.mark.parametrize(
    ("change", "path", "wanted"),
    [
        ("inner.width=4", "inner.width", 4),
        ("inner.width=1_000", "inner.width", 1000),
        ("inner.mixers=mamba", "inner.mixers", "mamba"),
        ("inner.mixers=mamba,attention", "inner.mixers", ("mamba", "attention")),
        ("inner.window=none", "inner.window", None),
        ("inner.window=64", "inner.window", 64),
        ("inner.scale=2", "inner.scale", 2.0),
        ("inner.norm=GPT2", "inner.norm", GPT2),
        ("inner.norm=gpt2", "inner.norm", GPT2),
        ("inner.norm.epsilon=1e-6", "inner.norm.epsilon", 1e-6),
        ("inner.norm.kind_of=layer", "inner.norm.kind_of", "layer"),
        ("inner.colour=blue", "inner.colour", Colour.BLUE),
        ("inner.causal=no", "inner.causal", False),
        ("inner.where=/tmp/x=y", "inner.where", Path("/tmp/x=y")),
        ("betas=0.8,1", "betas", (0.8, 1.0)),
        ("betas=(0.8, 0.9)", "betas", (0.8, 0.9)),
        ("sizes=1,2,3", "sizes", (1, 2, 3)),
        ("sizes=", "sizes", ()),
        ("named.loss=1.5", "named", {"loss": 1.5}),
        ("budget=30m", "budget", Budget.parse("30m")),
        ("start=last@abc", "start", Ref("last", "abc")),
        ("text=5", "text", "5"),
        ("text=", "text", ""),
    ],
)
def test_override_reads_by_the_annotation(change: str, path: str, wanted: Any) -> None:
    value: Any = override(Outer(), [change])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == wanted
    assert type(value) is type(wanted)


def test_overrides_apply_in_order_and_leave_the_rest() -> None:
    value = override(Outer(), ["inner.width=1", "inner.norm=GPT2", "inner.norm.epsilon=2", "inner.width=3"])
    assert value == Outer(inner=Inner(width=3, norm=Norm(2.0, "layer")))
    assert Outer() == Outer(inner=Inner())


@dataclass(frozen=True)
class Parted:
    width: int = 6
    heads: int = 3

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"{self.width} cannot be parted among {self.heads}")


def test_what_holds_between_fields_is_asked_of_them_together() -> None:
    assert override(Parted(), ["width=8", "heads=4"]) == Parted(8, 4)
    with pytest.raises(ConfigError, match="8 cannot be parted among 3"):
        override(Parted(), ["width=8"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("iner.width=4", "did you mean `inner`"),
        ("inner.widht=4", "no field `inner.widht`.*did you mean `inner.width`"),
        ("inner.norm.epsilom=4", "did you mean `inner.norm.epsilon`"),
        ("inner.width=wide", "`inner.width` is a whole number.*`wide` is not"),
        ("inner.width=4.5", "whole number"),
        ("inner.width.more=4", "`inner.width` has no fields"),
        ("inner.causal=maybe", "true or false"),
        ("inner.norm=GPT3", "did you mean `GPT2`"),
        ("inner.norm.kind_of=lyer", "did you mean `layer`"),
        ("inner.colour=rod", "RED"),
        ("inner.window=some", "whole number"),
        ("betas=1", "takes 2 values"),
        ("budget=0m", "budget of nothing"),
        ("inner.width", "is not a change"),
        ("=4", "is not a change"),
    ],
)
def test_a_wrong_override_says_what_and_how_to_fix_it(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(Outer(), [change])


def test_a_recipe_comes_back_whole() -> None:
    recipe = Recipe(
        about="all fields",
        family=Inner(),
        data=Outer(),
        budget=Budget.parse("0.50EUR@0.12"),
        batch_size=8,
        micro_batch=2,
        optimizer=Optimizer(kind="adamw", betas=(0.8, 0.9)),
        ema=0.99,
        expect={"loss": 1.5},
        parts={"codec": Ref("a-run", "00")},
        start=Ref("last"),
    )
    again = from_json(json.loads(json.dumps(to_json(recipe))))
    assert again == recipe
    assert hash(again) == hash(recipe)
