"""What models of pictures know that draw none, on models whose answers are known, and by the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_retrieval import Known, batches

from nomoat.cli import main
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import find
from nomoat.core.run import Run
from nomoat.data.words import WordTokenizer
from nomoat.evaluate.knows import knows
from nomoat.train.loop import train

WORDS = WordTokenizer(["cat", "dog"])


class Finder(Known):
    """Also says how well a pair fits."""

    def score(self, batch):
        return (self.encode({"image": batch["image"]}) * self.encode({"caption": batch["caption"]})).sum(1)


class Copier:
    """Gives back what it is shown, `error` brighter."""

    codes, grid = 4, (2, 2)

    def __init__(self, error):
        self.error = error

    def encode(self, batch):
        return batch["image"]

    def from_tokens(self, tokens):
        raise NotImplementedError

    def tokens(self, batch):
        return (batch["image"][:, 0] > 0).long()

    def decode_latent(self, latent):
        return {"image": latent + self.error}


def gallery(*names):
    [whole] = batches([0, 1, 0, 1], size=4)
    return {name: each for name, each in {**whole, "label": torch.tensor([0, 1, 0, 1])}.items() if name in names}


def test_a_finder_is_asked_to_find_and_to_classify():
    unit = torch.eye(2)
    given = gallery("image", "caption", "caption_mask", "label")
    found = knows(Finder(unit[[0, 1, 0, 0]], unit), {"all": given}, ("cat", "dog"), WORDS)
    lines = {line.name: line for line in found.groups["all"]}
    assert lines["zero-shot accuracy"].value.value == 0.75
    assert lines["zero-shot accuracy"].control == ("guessing", 0.5)
    assert lines["picture to caption, recall@1"].value.value == 0.75
    assert "zero-shot accuracy: 75.0 (" in found.as_text() and "guessing 50.0, of 4" in found.as_text()
    assert json.loads(json.dumps(found.as_json()))["groups"]["all"][0]["answers"] == 4


def test_what_cannot_be_asked_is_said():
    unit = torch.eye(2)
    found = knows(Finder(unit[[0, 1, 0, 1]], unit), {"all": gallery("image")}, (), WORDS)
    assert not found.groups["all"]
    assert found.notes == (
        "nothing was retrieved: these pictures have no captions",
        "nothing was classified: these pictures have no classes with names",
    )
    given = gallery("image", "caption", "caption_mask", "label")
    found = knows(Finder(unit[[0, 1, 0, 1]], unit), {"all": given}, ("cat", "bird"), WORDS)
    assert [note for note in found.notes if "bird" in note]
    with pytest.raises(ConfigError, match="no report card"):
        knows(Known(unit, unit), {"all": given}, (), WORDS)


def test_a_codec_is_asked_to_give_back():
    image = torch.tensor([-0.5, 0.5, 0.5, 0.5])[:, None, None, None].expand(4, 3, 2, 2)
    quality, codes = knows(Copier(0.2), {"all": {"image": image}}, (), None).groups["all"]
    assert quality.value.value == pytest.approx(20.0, abs=1e-3)  # 10 log10(2^2 / 0.2^2)
    assert quality.control[1] < 20
    assert (codes.value.value, codes.control[1]) == (0.5, 0.25)


@pytest.mark.parametrize("name", ["clip-small", "codec-small"])
def test_a_run_that_draws_nothing_is_measured(name, tmp_path, capfd):
    recipe = replace(find(name), budget=Budget.parse("1steps"), batch_size=8)
    run = Run.create(tmp_path, name, recipe)
    train(recipe, run)
    assert main(["evaluate", str(run.path), "--limit", "16", "--json"]) == 0
    groups = json.loads(capfd.readouterr().out.splitlines()[-1])["groups"]
    assert [*groups] == ["combinations like those seen", "combinations never seen"]
    asked = {"clip-small": "zero-shot accuracy", "codec-small": "peak signal to noise"}[name]
    assert all(asked in [line["name"] for line in lines] for lines in groups.values())
