"""Recipes: found by name or file, listed without importing, wrong settings refused at the door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Optimizer, Recipe, Ref, find, listing, schedule

FILE = '''"""{docstring}

More of it.
"""
from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe

recipe = Recipe(about="{about}", family=None, data=None, budget=Budget.parse("5steps"), batch_size=2)
'''


def recipe(**changes: Any) -> Recipe:
    settings = {"about": "x", "family": None, "data": None, "budget": Budget.parse("5steps"), "batch_size": 8}
    return Recipe(**{**settings, **changes})


def test_a_file_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(docstring="Mine.", about="my own"))
    assert find(path).about == find(str(path)).about == "my own"
    path.write_text("recipe = 5")
    with pytest.raises(ConfigError, match="defines no `recipe`"):
        find(path)
    with pytest.raises(ConfigError, match="there is no file"):
        find(tmp_path / "none.py")
    path.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        find(path)
    assert not [name for name in sys.modules if name.startswith("recipe_mine_")]


def test_every_recipe_of_ours_is_listed_with_a_line_about_it() -> None:
    for listed in listing():
        assert listed.about, listed.name
        assert listed.docstring, listed.name


@pytest.mark.parametrize("name", [listed.name for listed in listing()])
def test_every_recipe_of_ours_is_found(name: str) -> None:
    found = find(name.replace("_", "-"))
    assert found == find(name)
    assert found.about == next(listed.about for listed in listing() if listed.name == name)


def test_a_wrong_name_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nomoat.core.recipe.listing", lambda kind: [type("L", (), {"name": "gpt_small"})()])
    with pytest.raises(ConfigError, match=r"no recipe `gpt-smal`.*did you mean `gpt_small`"):
        find("gpt-smal")


def test_listing_reads_the_text_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("1 / 0\n" + FILE.format(docstring="Second.", about="two"))
    (tmp_path / "a.py").write_text('"""First."""\nrecipe: Recipe = Recipe("one", family=1)\n')
    (tmp_path / "c.py").write_text("recipe = make()\n")
    (tmp_path / "d.py").write_text("def sized(n):\n    return Recipe(about='four', x=n)\n\nrecipe = sized(3)\n")
    (tmp_path / "no_recipe.py").write_text("x = 1\n")
    (tmp_path / "_private.py").write_text("recipe = Recipe(about='p')\n")
    assert [tuple(listed) for listed in listing(tmp_path)] == [
        ("a", "one", "First."),
        ("b", "two", ""),
        ("c", "", ""),
        ("d", "four", ""),
    ]


def test_listing_imports_no_torch() -> None:
    code = "import sys; from nomoat.core import recipe; recipe.listing(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"batch_size": 7, "processes": 2}, "7 cannot be split among 2 processes.*use 6"),
        ({"precision": "bf61"}, "did you mean `bf16`"),
        ({"ema": 1.0}, "between 0 and 1"),
        ({"budget": "0m"}, "budget of nothing"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "moun"}, "did you mean `muon`"),
        ({"learning_rate": 0.0}, "above zero"),
        ({"warmup": 0.6, "warmdown": 0.5}, "do not fit"),
        ({"betas": (0.9, 1.0)}, r"lie in \[0, 1\)"),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Optimizer(**changes)


def test_a_recipe_is_changed_from_texts() -> None:
    changed = override(recipe(), ["budget=30m", "optimizer.kind=adamw", "start=last", "processes=2"])
    assert changed == recipe(
        budget=Budget.parse("30m"), optimizer=Optimizer(kind="adamw"), start=Ref("last"), processes=2
    )
    assert len({recipe(), recipe(), changed}) == 2


def test_the_schedule_rises_stays_and_falls() -> None:
    optimizer = Optimizer(warmup=0.1, warmdown=0.4, final=0.2)
    wanted = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.3: 1.0, 0.6: 1.0, 0.8: 0.6, 1.0: 0.2, 1.5: 0.2}
    assert {progress: pytest.approx(schedule(progress, optimizer)) for progress in wanted} == wanted
    assert (
        schedule(0.0, Optimizer(warmup=0.0, warmdown=0.0)) == schedule(1.0, Optimizer(warmup=0.0, warmdown=0.0)) == 1.0
    )


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).filter(lambda shares: sum(shares) <= 1),
)
def test_the_schedule_stays_in_bounds_and_never_rises_again(
    one: float, other: float, final: float, shares: list[float]
) -> None:
    optimizer = Optimizer(warmup=shares[0], warmdown=shares[1], final=final)
    early, late = sorted((one, other))
    assert 0 <= schedule(early, optimizer) <= 1
    if early >= shares[0]:
        assert schedule(early, optimizer) >= schedule(late, optimizer) - 1e-12


def test_a_part_is_frozen_and_no_submodule_of_its_holder():
    import torch

    from nomoat.core.family import Family, Frozen
    from nomoat.families.lm import LM

    class Holder(Family):
        def __init__(self, part):
            super().__init__()
            self.part = part
            self.own = torch.nn.Linear(1, 1)

    part = LM.tiny().build({}).train()
    holder = Holder(Frozen(part))
    assert [name for name, _ in holder.named_parameters()] == ["own.weight", "own.bias"]
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())
    assert holder.part.config == part.config and holder.part.score(part.example()).shape == (2, 8)
