"""Distances between sets of pictures: on constructed features what they must say, on emoji what a table says."""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from nomoat.core.errors import DataError
from nomoat.evaluate import distances
from nomoat.evaluate.distances import compare, frechet_distance, kernel_distance, sliced_wasserstein, squared
from nomoat.evaluate.features import judge, own_domain
from nomoat.evaluate.figure import Figure, jackknife, mean, plain, wilson


def normal(count, width=16, seed=0, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_hand(x_ND, y_MD, s):
    """The estimator as lemma 6 of Gretton et al. writes it."""
    x, y = x_ND.double().numpy(), y_MD.double().numpy()
    k = lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * s * s))  # noqa: E731
    n, m = len(x), len(y)
    first = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    second = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return first + second - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_the_kernel_distance_is_the_papers():
    x_ND, y_MD = normal(23, 5), normal(31, 5, 1, 0.7)
    apart = torch.pdist(x_ND.double()).sort().values
    s = float(apart[(len(apart) - 1) // 2])
    assert kernel_distance(x_ND, y_MD).value == pytest.approx(by_hand(x_ND, y_MD, s), rel=1e-4)


def test_the_kernel_distance_is_unbiased_at_any_number_and_its_interval_covers():
    """Small sets of one distribution: 0 on average, where the Fréchet distance is far from it; the interval has it."""
    found = [kernel_distance(normal(20, 8, 2 * seed), normal(20, 8, 2 * seed + 1)) for seed in range(100)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert min(values) < 0
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.9
    assert frechet_distance(normal(40, 8), normal(40, 8, 1)).value > 0.5


def test_the_interval_covers_a_distance_that_is_there():
    """Known by a large sample: 95 % intervals of 200 pictures hold it about as often as they say."""
    true = kernel_distance(normal(3000, 4, 1), normal(3000, 4, 2, 0.5)).value
    found = [kernel_distance(normal(200, 4, 10 + seed), normal(200, 4, 500 + seed, 0.5)) for seed in range(40)]
    covered = np.mean([one.low <= true <= one.high for one in found])
    assert 0.85 <= covered <= 1
    widths = np.array([one.high - one.low for one in found])
    spread = np.std([one.value for one in found])
    assert 0.6 < widths.mean() / (4 * spread) < 1.6


def test_equal_sets_are_not_told_apart_shifted_ones_are():
    found = compare(
        normal(400),
        {"real": normal(400, seed=1), "equal": normal(400, seed=2), "moved": normal(400, 16, 3, 0.5)},
        "real",
    )
    equal, moved, real = found.row("equal"), found.row("moved"), found.row("real")
    assert equal.kernel.low <= 0 <= equal.kernel.high and equal.above.low <= 0 <= equal.above.high
    assert moved.kernel.low > real.kernel.high and moved.above.low > 0
    assert moved.sliced.low > real.sliced.high
    assert real.above == Figure(0, 0, 0)
    assert abs(equal.recall.value - real.recall.value) < 0.1 and equal.twins.value == 0
    assert found.count == 400 and found.floor == "real"


def test_missing_modes_are_seen_by_recall_not_by_the_kernel_distance():
    """Two hundred clusters; of two thirds of them the set has nothing. A shift that hides nothing is 10 x as far."""
    chance = torch.Generator().manual_seed(0)
    places_KD = torch.randn(200, 32, generator=chance)

    def around(rows_N):
        return places_KD[rows_N] + 0.3 * torch.randn(len(rows_N), 32, generator=chance)

    whole, few = torch.arange(200).repeat(3), torch.arange(67).repeat(9)[:600]
    sets = {
        "real": around(whole),
        "dropped": around(few),
        "moved": around(whole) + 0.3,
        "twice": around(whole[:300]).repeat(2, 1),
    }
    found = compare(around(whole), sets, "real")
    real, dropped, moved = (found.row(name) for name in ("real", "dropped", "moved"))
    assert dropped.kernel.high < moved.kernel.low / 4
    assert dropped.recall.high < 0.4 and real.recall.low > 0.9 and moved.recall.low > 0.9
    assert dropped.coverage.high < real.coverage.low
    assert found.row("twice").twins.value == 1 and real.twins.value == 0


def test_precision_recall_density_coverage_against_loops():
    x, y = normal(40, 3).double(), normal(40, 3, 1, 0.8).double()
    found = compare(x.float(), {"set": y.float(), "real": normal(40, 3, 2)}, "real").row("set")
    radius = lambda side, k: [sorted(float((a - b).norm()) for b in side)[k] for a in side]  # noqa: E731 - 0: itself
    rx, ry, rx5 = radius(x, 3), radius(y, 3), radius(x, 5)
    inside = lambda point, side, radii: [float((point - b).norm()) <= r for b, r in zip(side, radii, strict=True)]  # noqa: E731
    assert found.precision.value == pytest.approx(np.mean([any(inside(b, x, rx)) for b in y]))
    assert found.recall.value == pytest.approx(np.mean([any(inside(a, y, ry)) for a in x]))
    assert found.density.value == pytest.approx(np.mean([sum(inside(b, x, rx5)) / 5 for b in y]))
    near = [min(float((a - b).norm()) for b in y) <= r for a, r in zip(x, rx5, strict=True)]
    assert found.coverage.value == pytest.approx(np.mean(near))


def test_sliced_wasserstein_and_frechet_know_a_shift():
    x, y = normal(3000, 4), normal(3000, 4, 1)
    moved = y + torch.tensor([2.0, 0, 0, 0])
    assert sliced_wasserstein(x, moved).value == pytest.approx(2 / np.sqrt(4), rel=0.1)  # along directions of chance
    found = frechet_distance(x, moved)
    assert found.low < 4 < found.high and found.value == pytest.approx(4, rel=0.1)
    wide = frechet_distance(x, 2 * y)  # |1 - 2|^2 a direction
    assert wide.value == pytest.approx(4, rel=0.1)
    assert frechet_distance(x, torch.ones(3000, 4)).value == pytest.approx(8, rel=0.1)  # no spread at all


def test_the_frechet_distance_appears_at_5000(monkeypatch):
    monkeypatch.setattr(distances, "FRECHET_PICTURES", 100)
    found = compare(normal(100, 3), {"real": normal(100, 3, 1), "b": normal(120, 3, 2, 1)}, "real")
    assert found.row("b").frechet.low > found.row("real").frechet.value
    monkeypatch.undo()
    assert np.isnan(compare(normal(100, 3), {"real": normal(100, 3, 1)}, "real").rows[0].frechet.value)


def test_sets_are_cut_to_the_smallest_and_the_same_seed_gives_the_same():
    sets = {"real": normal(90, seed=1), "b": normal(70, seed=2)}
    one, two = (compare(normal(120), sets, "real", seed=3) for _ in range(2))
    assert one == two and one.count == 70
    assert compare(normal(120), sets, "real", seed=4).row("b").kernel != one.row("b").kernel


def test_a_constant_set_is_a_set():
    found = compare(normal(50), {"real": normal(50, seed=1), "mean": torch.zeros(50, 16)}, "real").row("mean")
    assert found.kernel.low > 20 and found.recall.value == 0 and found.twins.value == 1


def test_what_cannot_be_compared_is_said():
    with pytest.raises(DataError, match=r"drawn: 4 pictures are too few"):
        compare(normal(50), {"real": normal(50), "drawn": normal(4)}, "real")
    with pytest.raises(DataError, match="look the same"):
        compare(torch.zeros(50, 3), {"real": normal(50, 3)}, "real")


@pytest.mark.slow
def test_two_thousand_against_two_thousand_take_seconds():
    x, real, y = (normal(2000, 1280, seed) for seed in range(3))
    began = time.process_time()
    found = compare(x, {"real": real, "y": y}, "real")
    assert time.process_time() - began < 20  # 4 alone on one core; this machine may be shared
    assert found.count == 2000


def test_squared_distances_of_far_points_are_not_negative():
    x = normal(20, 8, shift=100.0)
    assert float(squared(x, x).min()) >= 0


def test_figures():
    assert wilson(0, 0).shown() == "-" and np.isnan(mean(np.zeros(0)).value)
    none, all_of_it = wilson(0, 20), wilson(20, 20)
    assert none.low == 0 and none.high == pytest.approx(0.1611, abs=1e-3)  # as tables of Wilson's interval have it
    assert all_of_it.high == 1 and all_of_it.low == pytest.approx(0.8389, abs=1e-3)
    half = wilson(50, 100)
    assert half.low == pytest.approx(0.4038, abs=1e-3) and half.shown(".2f") == "0.50 (0.40 to 0.60)"
    values = np.random.default_rng(0).normal(size=400)
    spread = jackknife(lambda g: float(np.delete(values, np.s_[g::20] if g is not None else []).mean()), 20)
    assert spread.value == pytest.approx(values.mean())
    assert (spread.high - spread.low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.5)
    assert plain({"a": Figure(1.0, float("nan"), 2.0)}) == {"a": {"value": 1.0, "low": None, "high": 2.0}}


def test_wilson_covers():
    chance = np.random.default_rng(0)
    for share in (0.03, 0.5, 0.9):
        hits = chance.binomial(60, share, 2000)
        ends = [wilson(int(each), 60) for each in hits]
        assert 0.92 <= np.mean([one.low <= share <= one.high for one in ends]) <= 0.99


def emoji(shared, count):
    """Pictures of OpenMoji on white [N, Y, X, C], in an order of chance."""
    folder = shared / "data" / "openmoji"
    if not folder.is_dir():
        pytest.skip("needs data/openmoji")
    with gzip.open(folder / "emoji.jsonl.gz", "rt", encoding="utf-8") as file:
        names = [json.loads(line)["hexcode"] for line in file]
    kept = zipfile.ZipFile(folder / "png64.zip")
    found = []
    for place in torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:count].tolist():
        drawn = Image.open(io.BytesIO(kept.read(names[place] + ".png"))).convert("RGBA")
        page = Image.new("RGBA", drawn.size, "white")
        page.alpha_composite(drawn)
        found.append(np.asarray(page.convert("RGB")))
    return np.stack(found)


def tensor(image_NYXC):
    return torch.from_numpy(np.ascontiguousarray(image_NYXC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def spoiled(image_NYXC):
    """The sets of the table in image-peers.md, section 4.2."""
    chance = np.random.default_rng(0)
    blurred = lambda px: np.stack(  # noqa: E731
        [np.asarray(Image.fromarray(one).filter(ImageFilter.BoxBlur((px - 1) / 2))) for one in image_NYXC]
    )
    noisy = lambda levels: np.clip(image_NYXC + chance.normal(0, levels, image_NYXC.shape), 0, 255).round()  # noqa: E731
    grey = np.stack([np.asarray(Image.fromarray(one).convert("L").convert("RGB")) for one in image_NYXC])
    third = len(image_NYXC) // 3
    sets = {"real": image_NYXC, "noise 8": noisy(8), "noise 25": noisy(25), "blur 3": blurred(3), "blur 7": blurred(7)}
    return {
        name: tensor(each)
        for name, each in {**sets, "grey": grey, "dropped": np.concatenate([image_NYXC[:third]] * 3)}.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["judge", "own"])
def test_the_order_of_the_reference_table(shared, kind):
    """600 emoji, 300 against 300 (a table made on another vendor's drawings, so its order, not its figures)."""
    if kind == "judge":
        pytest.importorskip("efficientnet_lite_pytorch")
    pictures = emoji(shared, 1500)
    features = judge() if kind == "judge" else own_domain(tensor(pictures[600:]), steps=400)
    reference_ND = features.of(tensor(pictures[:300]))
    found = compare(
        reference_ND, {name: features.of(each) for name, each in spoiled(pictures[300:600]).items()}, "real"
    )
    far = {row.name: row.kernel.value for row in found.rows}
    assert found.row("real").kernel.low <= 0 <= found.row("real").kernel.high
    for spoil in ("noise 25", "blur 7", "grey"):
        assert found.row(spoil).above.low > 0
    assert far["real"] < far["blur 3"] < far["blur 7"] and far["noise 8"] < far["noise 25"]
    if kind == "judge":
        assert far["dropped"] < far["blur 3"] < min(far["grey"], far["noise 8"])
        assert max(far["grey"], far["noise 25"]) < far["blur 7"]
    # The blind spot, and who sees it.
    assert far["dropped"] < far["noise 25"] / 3
    assert found.row("dropped").coverage.high < found.row("real").coverage.low
    assert found.row("dropped").twins.value == 1
