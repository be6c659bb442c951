"""The report card of a generator, and contact sheets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from judged_pictures import CLASSES, drawings
from PIL import Image

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.ledger import Entry
from nomoat.evaluate import picture_report as module
from nomoat.evaluate.contact import PAPER, beside, sheet
from nomoat.evaluate.features import Features
from nomoat.evaluate.picture_report import Judging, Prompts, Truth, picture_report

SMALL = torch.nn.functional.avg_pool2d
PIXELS = Features(
    "pixels", "means of 4 x 4 pixels", "0" * 64, lambda x_BCYX: SMALL(x_BCYX, 4).flatten(1), torch.device("cpu")
)
QUICK = Judging(features=PIXELS, steps=5, rows=32)
TRAINING, TRAINING_LABELS = drawings(300, seed=0)
HELD_OUT, HELD_OUT_LABELS = drawings(100, seed=1)
TRUTH = Truth(
    HELD_OUT,
    [(image_CYX, Entry(str(n), f"set/{n}.png | <b>", "CC0-1.0", author="Ann")) for n, image_CYX in enumerate(TRAINING)],
    HELD_OUT_LABELS,
    TRAINING_LABELS,
    CLASSES,
)


def asked_for(labels_N):
    return [{"kind": CLASSES[label]} for label in labels_N.tolist()]


def reader(image_CYX):
    """The kind of the one real picture it equals, of those that the tests draw."""
    for image_NCYX, label_N in ((HELD_OUT, HELD_OUT_LABELS), drawings(100, seed=2), (TRAINING, TRAINING_LABELS)):
        apart_N = (image_NCYX - image_CYX).abs().flatten(1).amax(1)
        if float(apart_N.min()) < 0.01:
            return {"kind": CLASSES[label_N[apart_N.argmin()]]}
    return {"kind": "nothing"}


def group(labels_N=HELD_OUT_LABELS, name="held-out prompts", real=HELD_OUT):
    batch = {"label": labels_N, "index": torch.arange(len(labels_N)), "guidance": 3.0}
    return Prompts(name, batch, len(labels_N), asked_for(labels_N), labels_N, real)


class Honest:
    """Draws fresh pictures of the right kind."""

    def __init__(self):
        self.asked = []
        self.image_NCYX, self.label_N = drawings(400, seed=2)

    def __call__(self, prompts):
        self.asked.append((prompts["first"], len(prompts["label"]), prompts["guidance"]))
        chosen = [
            int((self.label_N == label).nonzero()[(prompts["first"] + row) % 40])
            for row, label in enumerate(prompts["label"])
        ]
        return self.image_NCYX[chosen]


@pytest.fixture(scope="module")
def honest():
    draw, events = Honest(), []
    found = picture_report(draw, [group()], TRUTH, reader, QUICK, events.append)
    return draw, events, found


def test_every_row_is_there(honest):
    draw, events, found = honest
    assert draw.asked == [(0, 32, 3.0), (32, 32, 3.0), (64, 32, 3.0), (96, 4, 3.0)]
    for text in (found.as_text(), found.as_markdown()):
        for part in (
            *(
                "What have I got?",
                "KD-pixels x 1,000",
                "KD-own x 1,000",
                "above the floor",
                "sliced Wasserstein",
                "precision",
            ),
            *("recall", "density", "coverage", "twins", "FD-pixels", "other real: the floor", "real + noise 25/255"),
            *(
                "mean picture",
                "nearer than a held-out picture",
                "Classifier accuracy",
                "as many real",
                "most frequent class",
            ),
            *("What was asked for: held-out prompts", "others' prompts", "kind (up)", "if each were got alone"),
            *("pictures a second", "Ann; CC0-1.0", "Only 100 pictures", "No Fréchet distance"),
        ):
            assert part in text, part
        assert "FID" not in text and "nan" not in text
    assert "<b>" not in found.as_markdown().replace("    sample", "")[:200]
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert data["verdict"] == found.verdict and data["distances"][0]["rows"][0]["name"] == "drawn"
    assert data["memorised"]["pairs"][0]["licence"] == "CC0-1.0" and data["limits"]
    assert data["conditions"][0]["real"]["joint"]["value"] == 1
    assert {"phase", "drawn", "features", "classifier", "memorised"} <= {event["kind"] for event in events}
    assert found.pictures_per_second.low <= found.pictures_per_second.value <= found.pictures_per_second.high


def test_honest_pictures_are_not_told_from_real_ones(honest):
    found = honest[2]
    assert "cannot be told from real ones" in found.verdict and "No copies" in found.verdict
    table = found.distances[0]
    assert table.row("drawn").above.low <= 0 < table.row("real + noise").above.low
    assert table.row("mean picture").kernel.value > table.row("real + noise").kernel.value


def test_markdown_is_a_table_whatever_the_files_are_called(honest):
    page = honest[2].as_markdown().split("\n")
    rows = [line for line in page if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert all(line.startswith("    sample") for line in page if "<b>" in line)


def test_each_fault_is_named():
    def verdict(draw, **changes):
        return picture_report(draw, [group()], TRUTH, reader, Judging(**{**vars(QUICK), **changes})).verdict

    right = [int((label == TRAINING_LABELS).nonzero()[row % 30]) for row, label in enumerate(HELD_OUT_LABELS)]
    copied = verdict(lambda prompts: TRAINING[right[prompts["first"] :][: len(prompts["label"])]])
    assert "It copies" in copied
    noise = torch.rand(100, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spoiled = verdict(lambda prompts: noise[: len(prompts["label"])])
    assert "further from real" in spoiled and "does not follow its prompts" in spoiled
    same = verdict(lambda prompts: HELD_OUT[:1].expand(len(prompts["label"]), -1, -1, -1))
    assert "leaves out part" in same and "have a twin" in same


def test_without_the_judge_the_own_net_judges_and_says_so(monkeypatch):
    def absent(device=None):
        raise ConfigError("the judge of pictures is not installed (x)", "why", "pip install 'nomoat[judge]'")

    monkeypatch.setattr(module, "judge", absent)
    grey, _ = drawings(120, seed=6, channels=1)
    bare = Truth(grey[:40], [(image_CYX, None) for image_CYX in grey[40:]])
    prompts = Prompts("any", {"index": torch.arange(40)}, 40)
    found = picture_report(
        lambda batch: drawings(len(batch["index"]), 5, 16, 1)[0], [prompts], bare, None, Judging(steps=3)
    )
    assert [one.features for one in found.distances] == ["own"] and found.memorised.features == "own"
    text = found.as_text()
    assert "The judge of pictures is not installed (x): pip install 'nomoat[judge]'." in text
    assert "no classes" in text and "nobody can read" in text and "which way up" in text
    assert found.accuracy is None and not found.conditions


def test_fid_is_its_name_only_with_inception(monkeypatch, tmp_path):
    fake = Features("Inception", "InceptionV3 (w.pth)", "1" * 64, PIXELS.read, PIXELS.device)
    monkeypatch.setattr(module, "inception", lambda path, device: fake)
    monkeypatch.setattr("nomoat.evaluate.distances.FRECHET_PICTURES", 50)
    monkeypatch.setattr("nomoat.evaluate.distances.GROUPS_FRECHET", 2)
    monkeypatch.setattr(module, "FRECHET_PICTURES", 50)
    judging = Judging(**{**vars(QUICK), "inception": tmp_path / "w.pth"})
    found = picture_report(Honest(), [group()], TRUTH, None, judging)
    assert [one.features for one in found.distances] == ["pixels", "Inception", "own"]
    text = found.as_text()
    assert text.count("FID (down)") == 1 and "FD-pixels (down)" in text and "No Fréchet" not in text
    assert found.distances[1].row("drawn").frechet.low < found.distances[1].row("drawn").frechet.high


def test_several_groups_are_read_each(honest):
    second = group(TRAINING_LABELS[:40], "never seen", None)
    found = picture_report(Honest(), [group(), second], TRUTH, reader, QUICK)
    assert [one.name for one in found.conditions] == ["held-out prompts", "never seen"]
    assert found.conditions[1].real is None and found.drawn == 100


@pytest.mark.parametrize(
    ("draw", "groups", "error", "said"),
    [
        (Honest(), [], ConfigError, "no prompt"),
        (Honest(), [Prompts("x", {}, 0)], ConfigError, "no prompt"),
        (
            lambda prompts: torch.full((len(prompts["label"]), 3, 16, 16), float("nan")),
            [group()],
            DataError,
            "run away",
        ),
        (lambda prompts: torch.zeros(2, 3, 16, 16), [group()], DataError, r"\[2, 3, 16, 16\] was drawn"),
        (lambda prompts: torch.zeros(len(prompts["label"]), 3, 8, 8), [group()], DataError, "held-out pictures set"),
    ],
)
def test_bad_drawings_are_said(draw, groups, error, said):
    with pytest.raises(error, match=said):
        picture_report(draw, groups, TRUTH, reader, QUICK)


def test_too_few_real_pictures_are_said():
    with pytest.raises(DataError, match="5 held-out and 300 training pictures are too few"):
        picture_report(Honest(), [group()], Truth(HELD_OUT[:5], TRUTH.training), None, QUICK)


# --- contact sheets


def test_a_sheet_lies_as_its_layout_says(tmp_path):
    image_NCYX, _ = drawings(7, size=16)
    made = sheet(image_NCYX, [f"a red square left of number {n} \x1b and of many more words" for n in range(7)], 3, 5)
    layout = made.layout
    assert (layout.columns, layout.gap, layout.scale, layout.picture) == (3, 5, 6, (96, 96))
    assert made.image.size == layout.size == (5 + 3 * 101, 5 + 3 * (layout.cell[1] + 5))
    pixels_YXC = np.asarray(made.image)
    for number, image_CYX in enumerate(image_NCYX):
        left, top = layout.corner(number)
        shown_YXC = pixels_YXC[top : top + 96 : 6, left : left + 96 : 6]
        assert np.abs(shown_YXC - (image_CYX.permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.51
        assert pixels_YXC[top + 97 : top + layout.cell[1], left : left + 96].min() < 120  # its caption
        assert (pixels_YXC[top - 5 : top, left : left + 96] == PAPER).all()
    read = Image.open(made.save(tmp_path / "sheet.png", {"prompt": "a\nb"}))
    assert json.loads(read.text["layout"])["gap"] == 5 and read.text["prompt"] == "a\nb"
    assert np.array_equal(np.asarray(read), pixels_YXC)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_captions_stay_within_their_cell():
    image_NCYX = torch.full((2, 1, 8, 8), 1.0)
    made = sheet(image_NCYX, ["W" * 200, "short"], 2, 40)
    pixels_YX = np.asarray(made.image.convert("L"))
    left, _ = made.layout.corner(0)
    assert (pixels_YX[:, left + made.layout.cell[0] : left + made.layout.cell[0] + 40] == PAPER[0]).all()


def test_sheets_of_any_number_and_size():
    for count, size, scale in ((1, 1, 96), (10, 64, 2), (101, 200, 1)):
        made = sheet(torch.zeros(count, 1, size, size))
        assert made.layout.scale == scale and made.layout.columns <= 10
        assert made.image.size == made.layout.size
    with pytest.raises(ConfigError, match="0 pictures"):
        sheet(torch.zeros(0, 3, 8, 8))
    with pytest.raises(ConfigError, match="2 captions"):
        sheet(torch.zeros(3, 3, 8, 8), ["a", "b"])
    with pytest.raises(ConfigError, match="gap"):
        sheet(torch.zeros(3, 3, 8, 8), gap=-1)


def test_samples_stand_beside_their_nearest(honest):
    found = honest[2]
    rows = [pair.sample for pair in found.memorised.pairs[:3]]
    origins = [pair.origin() for pair in found.memorised.pairs[:3]]
    made = beside(found.drawn_NCYX[rows], found.memorised.nearest_NCYX[rows], ["a bar"] * 3, origins)
    assert made.layout.columns == 4 and made.layout.count == 6
    pixels_YXC, (left, top) = np.asarray(made.image), made.layout.corner(3)
    want_YXC = (found.memorised.nearest_NCYX[rows[1]].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(pixels_YXC[top : top + 96 : 6, left : left + 96 : 6] - want_YXC).max() <= 0.51
    with pytest.raises(ConfigError, match="needs one of its own size"):
        beside(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
