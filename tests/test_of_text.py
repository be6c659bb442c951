"""What asks for text says so of a run that draws or plays, before it reads anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.cli import main
from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.data.shapes import Shapes
from nomoat.families.alphazero import AlphaZero
from nomoat.families.diffusion import Diffusion

ASKED = {
    "generate": ["RUN", "a"],
    "chat": ["RUN"],
    "surprise": ["RUN", "text.txt"],
    "evaluate": ["RUN", "text.txt"],
    "prefer": ["RUN", "pairs.jsonl"],
    "tune": ["RUN", "text.txt"],
    "think": ["RUN", "2+2"],
    "curve": ["RUN", "countdown:4"],
    "improve": ["RUN", "countdown:4"],
    "distil": ["RUN", "gpt-small", "pairs.jsonl"],
    "judge": ["RUN", "RUN", "pairs.jsonl", "--judge", "RUN"],
    "serve": ["RUN"],
    "quantize": ["RUN", "--bits", "8"],
    "export": ["RUN", "--to", "hf"],
}


@pytest.mark.parametrize("verb", ASKED)
@pytest.mark.parametrize("family", [Diffusion.tiny(), AlphaZero.tiny()], ids=["pictures", "game"])
def test_a_model_of_something_else_is_refused(
    verb: str, family: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("hello")
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    data = Shapes(size=16) if isinstance(family, Diffusion) else None
    run = Run.create(None, "other", Recipe("Something else.", family, data, Budget.parse("1steps"), 1))
    assert main([verb, *(str(run.path) if word == "RUN" else word for word in ASKED[verb])]) == 2
    shown = capfd.readouterr().err
    assert f"{run.name} is no model of text" in shown or f"{run.name} is no language model" in shown
