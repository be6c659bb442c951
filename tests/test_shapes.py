"""The shapes world: each picture a function of its number, what is held out never shown, two readers that are right."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nomoat.core.config import from_json, override, to_json
from nomoat.core.errors import CheckpointError, ConfigError
from nomoat.core.tensors import write_tensors
from nomoat.data.shapes import Shapes
from nomoat.data.shapes_captions import FORMS, HELD_FORMS, NONSENSE, caption, longest, words
from nomoat.data.shapes_picture import HINTS, hint, images, masks
from nomoat.data.shapes_scene import ATTRIBUTES, BACKGROUNDS, COLOURS, RELATIONS, SHAPES, VALUES, Scene, Scenes, Thing
from nomoat.data.shapes_splits import HELD_ORDER, KINDS, SPLITS, fingerprint, kinds, split_of
from nomoat.data.words import split as words_of
from nomoat.evaluate.reader import Reader, right, train_reader, worsened
from nomoat.evaluate.reader import kinds as kinds_of
from nomoat.evaluate.shapes import marks, read

HASH = "5823189dbc28a116e2feb93299dbc18187f77a5dd87fa3017a11861ea43d3108"
WORLDS = [(split, objects) for split in SPLITS for objects in (1, 2, 3) if (split, objects) != ("relation", 1)]


def numbers(scene: Scene) -> np.ndarray:
    return Scenes.of([scene]).kind_BND[0]


def orders(scene: Scene) -> list[tuple[int, int]]:
    """Shapes that stand in an order: in the row or column that a relation tells, or by cells of three and more."""
    places = [(thing.x, thing.y, SHAPES.index(thing.shape)) for thing in scene.things]
    found = []
    for a in places:
        for b in places:
            across, down = b[0] - a[0], b[1] - a[1]
            if len(places) == 2:
                found += (
                    [(a[2], b[2])]
                    if max(across, down) > 0 and max(across, down) == max(map(abs, (across, down)))
                    else []
                )
            else:
                found += [(a[2], b[2])] if a[0] < 0.5 < b[0] or a[1] < 0.5 < b[1] else []
    return found


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("count", [None, 50])
def test_any_world_size_and_any_start_read_the_same_samples(count: int | None) -> None:
    world = Shapes(size=16, objects=3, count=count, hint="mask")
    whole = list(islice(world.stream(None, 12, seed=3), 4))
    assert equal(whole[2], next(world.stream(None, 12, seed=3, start=2)))
    for rank in range(3):
        part = next(world.stream(None, 12, seed=3, start=2, rank=rank, world=3))
        assert equal(part, {name: tensor[rank::3] for name, tensor in whole[2].items()})
    alone = world.sampler(3)([25])
    assert equal(alone, {name: tensor[1:2] for name, tensor in whole[2].items()})
    assert not torch.equal(next(world.stream(None, 12, seed=4))["image"], whole[0]["image"])


def test_a_count_bounds_the_different_pictures_and_shuffles_each_epoch() -> None:
    read_image = Shapes(size=16, count=20).sampler(0)
    first, second = (read_image(np.arange(20) + start)["image"].flatten(1) for start in (0, 20))
    assert len({row.numpy().tobytes() for row in (*first, *second)}) == 20
    assert not torch.equal(first, second)


def test_batches_have_the_keys_that_all_parts_share() -> None:
    world = Shapes(size=24, objects=2, hint="depth")
    batch = next(world.stream(None, 5, seed=0))
    assert batch["image"].shape == (5, 3, 24, 24) and batch["image"].dtype == torch.float32
    assert batch["image"].abs().max() <= 1
    assert batch["caption"].shape == batch["caption_mask"].shape == (5, 20) and batch["caption"].dtype == torch.int64
    assert batch["caption_mask"].dtype == torch.bool and batch["label"].dtype == torch.int64
    assert batch["hint"].shape == (5, 1, 24, 24) and batch["index"].tolist() == list(range(5))
    shown = world.shown(range(5), seed=0)
    assert [world.classes[label] for label in batch["label"]] == [scene.things[0].shape for scene in shown.scenes]
    for row, text in enumerate(shown.captions):
        assert world.words().decode(batch["caption"][row][batch["caption_mask"][row]]) == " ".join(words_of(text))


def test_held_out_pictures_are_the_same_for_every_run_and_in_no_training() -> None:
    world = Shapes(size=16)
    held = list(world.held_out(None, 32, 64 * 70))
    assert sum(len(batch["image"]) for batch in held) == 70
    assert equal(held[0], next(world.held_out(None, 32, 64 * 70)))
    trained = world.sampler(0)(np.arange(70))["image"]
    assert not any((image == trained).all((1, 2, 3)).any() for image in held[0]["image"])


def test_the_recipe_value_survives_json_and_never_changes() -> None:
    world = Shapes(size=64, objects=3, split="pair", hint="edges")
    assert from_json(to_json(world)) == world and world.changed() == [] and world.paths == ()
    assert override(world, ["count=100", "hint=none"]) == Shapes(64, 3, "pair", 100)


def test_what_is_held_out_is_fixed() -> None:
    assert fingerprint([FORMS, HELD_FORMS]) == HASH


def test_held_out_kinds_cover_evenly_and_are_apart() -> None:
    where = split_of(KINDS)
    assert {name: int((where == name).sum()) for name in ("seen", "pair", "triple")} == {
        "seen": 248,
        "pair": 96,
        "triple": 40,
    }
    pairs = {(s, c) for s, c, _, _ in kinds("pair").tolist()}
    assert len(pairs) == 16
    seen = {(s, c) for s, c, _, _ in kinds("seen").tolist()}
    assert not seen & pairs and {(s, c) for s, c, _, _ in kinds("triple").tolist()} <= seen
    for axis in range(2):
        assert np.bincount([pair[axis] for pair in seen]).tolist() == [6] * 8
    triples = {(s, c, "texture", t) for s, c, _, t in kinds("triple").tolist()} - {
        (s, c, "texture", t) for s, c, _, t in kinds("seen").tolist()
    }
    triples |= {(s, c, "size", z) for s, c, z, _ in kinds("triple").tolist()} - {
        (s, c, "size", z) for s, c, z, _ in kinds("seen").tolist()
    }
    assert len(triples) == 16
    assert HELD_ORDER.sum() == 16 and not (HELD_ORDER & HELD_ORDER.T).any()


@pytest.mark.parametrize(("split", "objects"), WORLDS)
def test_each_split_shows_only_what_it_may(split: str, objects: int) -> None:
    shown = [Shapes(16, objects, split).shown(np.arange(150), 0), Shapes(16, objects, split).asked(np.arange(150))]
    for scene in (scene for each in shown for scene in each.scenes):
        of = set(split_of(numbers(scene)))
        assert of == {split if split in ("pair", "triple") else "seen"} or split == "all"
        held = [bool(HELD_ORDER[order]) for order in orders(scene)]
        assert split == "all" or (all(held) and held if split == "relation" else not any(held))
        assert scene.relation is None or len(scene.things) == 2
        if not scene.alike:
            for name in ("shape", "colour"):
                assert len({getattr(thing, name) for thing in scene.things}) == len(scene.things)
    counts = {len(scene.things) for scene in shown[1].scenes}
    assert counts == {2 if split == "relation" else objects + (split == "count")}
    if split in ("seen", "all"):
        assert {len(scene.things) for scene in shown[0].scenes} == set(range(1, objects + 1))


def test_every_value_of_everything_occurs() -> None:
    scenes = Shapes(16, 3).shown(np.arange(2000), 0).scenes
    kinds_seen = np.concatenate([numbers(scene) for scene in scenes])
    for d, names in enumerate(VALUES):
        shares = np.bincount(kinds_seen[:, d], minlength=len(names)) / len(kinds_seen)
        assert shares.min() > 0.6 / len(names), names
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.relation for scene in scenes} == {*RELATIONS, None}
    assert len({(scene.said, scene.alike) for scene in scenes}) >= 6


def test_captions_hold_exactly_the_words_and_fit() -> None:
    said: set[str] = set()
    for split, objects in WORLDS:
        world = Shapes(16, objects, split)
        texts = [*world.shown(np.arange(300), 1).captions, *world.asked(np.arange(300)).captions]
        said |= {word for text in texts for word in words_of(text)}
        assert max(len(words_of(text)) for text in texts) <= longest(objects)
    assert said == set(words().words)


def test_no_training_caption_has_a_held_out_form_or_a_word_without_meaning() -> None:
    seen, apart = Shapes(16, 2), Shapes(16, 2, "paraphrase")
    plain = {_skeleton(text) for text in seen.shown(np.arange(3000), 0).captions}
    other = {_skeleton(text) for text in apart.asked(np.arange(300)).captions}
    assert not plain & other and len(plain) > 10 and len(other) >= 4
    assert not any(set(words_of(text)) & set(NONSENSE) for text in seen.shown(np.arange(500), 0).captions)
    assert all(set(words_of(text)) & set(NONSENSE) for text in Shapes(16, 1, "nonsense").asked(range(50)).captions)


def _skeleton(text: str) -> str:
    """The sentence with its content taken out."""
    content = {name: "adj" for names in VALUES[1:] for name in names} | dict.fromkeys(("little", "big"), "adj")
    content |= {name: "noun" for shape in SHAPES for name in (shape, f"{shape}s", f"{shape}es")}
    content |= {"an": "a", "over": "above", "below": "above", "under": "above", "right": "left"}
    return " ".join(content.get(word, word) for word in words_of(text))


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene((Thing("circle", "red", "small", "striped"),)), "a small red striped circle"),
        (Scene((Thing("star", "orange"),), said=("shape", "colour")), "an orange star"),
        (Scene((Thing("cross", "green"),) * 3, said=("shape", "colour")), "three green crosses"),
        (
            Scene((Thing("square", "red"), Thing("circle", "blue")), relation="left", said=("shape", "colour")),
            "a red square left of a blue circle",
        ),
        (
            Scene(tuple(map(Thing, ("ring", "star", "heart"), ("red", "pink", "blue"))), said=("shape", "colour")),
            "a red ring, a pink star and a blue heart",
        ),
    ],
)
def test_a_scene_told_plainly(scene: Scene, text: str) -> None:
    assert caption(scene) == text


@pytest.mark.parametrize("size", [16, 32, 128])
def test_masks_are_the_pixels_that_things_change(size: int) -> None:
    shown = Shapes(size, 3, "all").asked(np.arange(40))
    scenes = Scenes.of(shown.scenes)
    empty = images(Scenes.of([Scene((), scene.background) for scene in shown.scenes]), size)
    cover, changed = masks(scenes, size), np.abs(images(scenes, size) - empty).max(1)
    assert cover.min() >= 0 and cover.sum(1).max() <= 1 + 1e-6
    assert ((cover.sum(1) > 1e-4) == (changed > 1e-4)).mean() > 0.9999
    assert (changed[cover.sum(1) > 0.99] > 0.7).all()
    assert (cover.sum((2, 3)) / size**2 > 0.01).all() and (cover.sum((2, 3)) / size**2 < 0.16).all()


def test_what_is_lower_is_in_front() -> None:
    """Scenes that are drawn never overlap, but a scene of one's own may."""
    scene = Scene((Thing("square", "red", "large", y=0.6), Thing("square", "blue", "large", y=0.5)))
    image, cover = images(Scenes.of([scene]), 64)[0], masks(Scenes.of([scene]), 64)[0]
    assert image[0, 34, 32] > image[2, 34, 32]  # red before blue
    assert cover[0, 34, 32] == 1 and cover[1, 34, 32] == 0 and cover.sum(0).max() <= 1


def test_hints_are_sane() -> None:
    shown = Shapes(64, 2, "all").asked(np.arange(30))
    scenes = Scenes.of(shown.scenes)
    mask, edges, depth = (hint(scenes, 64, kind)[:, 0] for kind in HINTS)
    for each in (mask, edges, depth):
        assert each.min() >= 0 and each.max() <= 1 + 1e-6
    inside, outside = mask > 0.99, mask < 0.01
    assert (edges[(mask > 0.3) & (mask < 0.7)] > 0.9).all()
    assert edges.mean() < 0.15 and edges[inside].mean() < 0.4 and edges[outside].mean() < 0.1
    assert depth[inside].min() > depth[outside].max()
    for row, scene in enumerate(shown.scenes):
        near = [
            depth[row, round(thing.y * 64 - 0.5), round(thing.x * 64 - 0.5)]
            for thing in scene.things
            if thing.shape != "ring"
        ]
        low = [thing.y + thing.radius for thing in scene.things if thing.shape != "ring"]
        assert np.argsort(near).tolist() == np.argsort(low).tolist()
        assert (np.diff(depth[row][:, 0]) > 0).all() or not outside[row][:, 0].all()


def test_a_picture_is_the_same_at_every_size() -> None:
    scenes = Scenes.of(Shapes(32, 3, "all").asked(np.arange(20)).scenes)
    small, large = images(scenes, 32), images(scenes, 128)
    shrunk = large.reshape(20, 3, 32, 4, 32, 4).mean((3, 5))
    assert np.abs(small - shrunk).mean() < 0.01 and np.abs(small - shrunk).max() < 0.6


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("state", ["clean", "noise", "soft"])
def test_the_analytic_reader_is_right(objects: int, state: str) -> None:
    shown = Shapes(32, objects, "all").asked(np.arange(300))
    image = shown.batch["image"]
    if state == "noise":
        image = (image + torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * 8 / 127.5).clamp(-1, 1)
    if state == "soft":
        image = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    found = [marks(scene, reading) for scene, reading in zip(shown.scenes, read(image), strict=True)]
    for name in ("count", *ATTRIBUTES, "joint", *(["relation"] if objects == 2 else [])):
        assert np.mean([each[name] for each in found if name in each]) >= 0.99, name


@pytest.mark.parametrize(("split", "objects"), [("count", 1), ("count", 2), ("count", 3), ("relation", 2), ("pair", 3)])
def test_it_reads_every_held_out_scene(split: str, objects: int) -> None:
    shown = Shapes(32, objects, split).asked(np.arange(60))
    found = [marks(scene, reading) for scene, reading in zip(shown.scenes, read(shown.batch["image"]), strict=True)]
    assert np.mean([each["joint"] for each in found]) >= 0.98


def test_the_same_scene_reads_the_same_at_another_size() -> None:
    scenes = Scenes.of(Shapes(32, 2, "all").asked(np.arange(25)).scenes)
    told = []
    for size in (32, 64, 128):
        readings = read(images(scenes, size))
        told.append([[(f.shape, f.colour, f.size, f.texture) for f in r.things] + [r.background] for r in readings])
    assert told[0] == told[1] == told[2]


def test_nothing_is_read_where_nothing_is() -> None:
    empty = Scenes.of([Scene((), name) for name in BACKGROUNDS])
    assert [(r.things, r.background) for r in read(images(empty, 32))] == [((), name) for name in BACKGROUNDS]
    assert read(torch.full((1, 3, 32, 32), torch.nan))[0].things == ()
    grey = (
        torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    assert not marks(Scene((Thing("circle", "red"),)), read(grey * 2 - 1)[0])["joint"]


def test_what_is_no_shape_or_no_colour_is_none() -> None:
    image = images(Scenes.of([Scene(())]), 32)
    image[0, :, 8:24, 14:17] = np.array([-0.9, -0.9, -0.9])[:, None, None]
    (thing,) = read(image)[0].things
    assert thing.shape is None and thing.colour is None


def test_marks_say_what_is_wrong() -> None:
    red, blue = Thing("square", "red", x=0.25), Thing("circle", "blue", x=0.75)
    scene = Scene((red, blue), relation="left", said=("shape", "colour"))

    def marked(*things: Thing) -> dict[str, bool]:
        return marks(scene, read(images(Scenes.of([Scene(things)]), 32))[0])

    assert all(marked(red, blue).values()) and all(marked(blue, red).values())
    swapped = marked(Thing("square", "blue", x=0.25), Thing("circle", "red", x=0.75))
    assert swapped["count"] and not swapped["bound"] and not swapped["joint"]
    turned = marked(Thing("square", "red", x=0.75), Thing("circle", "blue", x=0.25))
    assert turned["bound"] and not turned["relation"] and not turned["joint"]
    more = marked(red, blue, Thing("star", "pink", y=0.8))
    assert more["bound"] and more["relation"] and not more["count"] and not more["joint"]
    fewer = marked(red)
    assert not any(fewer.values())
    large = marked(Thing("square", "red", "large", x=0.25), blue)
    assert large["joint"] and not large["size"]  # nothing was said of sizes


def test_the_trained_reader_learns_saves_and_loads(tmp_path) -> None:
    told: list[float] = []
    reader = train_reader(size=16, steps=12, batch_size=32, watch=lambda step, loss: told.append(loss))
    assert np.mean(told[-3:]) < np.mean(told[:3])
    shown = Shapes(16, 1, "all").asked(np.arange(50))
    shares = right(reader, shown.batch["image"], kinds_of(shown.scenes))
    assert set(shares) == {*ATTRIBUTES, "joint"}
    reader.save(tmp_path / "reader.safetensors")
    again = Reader.load(tmp_path / "reader.safetensors")
    assert torch.equal(again.read(shown.batch["image"]), reader.read(shown.batch["image"]))
    with pytest.raises(ConfigError, match="16 pixels"):
        again.read(torch.zeros(1, 3, 32, 32))
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="no reader"):
        Reader.load(tmp_path / "other.safetensors")


def test_training_a_reader_is_repeatable_and_touches_no_global_chance() -> None:
    before = torch.random.get_rng_state()
    first, second = (train_reader(size=16, steps=2, batch_size=4, seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
    image = torch.zeros(2, 3, 16, 16)
    assert worsened(image, torch.Generator().manual_seed(0)).abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 8}, "16 to 128"),
        ({"size": 256}, "16 to 128"),
        ({"objects": 0}, "1 to 3"),
        ({"objects": 4}, "1 to 3"),
        ({"split": "pairs"}, "`pair`"),
        ({"split": "relation"}, "objects=2"),
        ({"hint": "edge"}, "`edges`"),
        ({"count": 0}, "at least 1"),
        ({"caption_length": 5}, "caption_length=11"),
    ],
)
def test_a_world_that_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        Shapes(**wrong)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"size": 64}, "family.size=32"),
        ({"size": 32, "channels": 1}, "family.channels=3"),
        ({"vocab_size": 10, "caption_length": 20}, f"family.vocab_size={words().vocab_size}"),
        ({"vocab_size": 100, "caption_length": 12}, "family.caption_length=20"),
        ({"classes": 10}, "family.classes=8"),
    ],
)
def test_a_family_that_does_not_fit_is_told(config: dict, said: str) -> None:
    family = SimpleNamespace(config=SimpleNamespace(**config))
    with pytest.raises(ConfigError) as told:
        Shapes().stream(family, 4, 0)
    assert said in str(told.value)
    Shapes().stream(SimpleNamespace(config=SimpleNamespace(vocab_size=0, caption_length=0, classes=0, size=32)), 4, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Thing("hexagon", "red"),
        lambda: Thing("circle", "mauve"),
        lambda: Thing("circle", "red", x=1.5),
        lambda: Scene((Thing("circle", "red"),), relation="left"),
        lambda: Scene((), "brown"),
        lambda: Scene((), said=("weight",)),
        lambda: images(Scenes.of([]), 300),
        lambda: hint(Scenes.of([]), 32, "sketch"),
        lambda: read(torch.zeros(2, 1, 32, 32)),
    ],
)
def test_what_is_no_scene_is_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_colours_and_backgrounds_are_told_apart() -> None:
    from nomoat.data.shapes_picture import BACKGROUND_RGB, COLOUR_RGB

    for names, table in ((COLOURS, COLOUR_RGB), (BACKGROUNDS, BACKGROUND_RGB)):
        assert len(table) == len(names)
    apart = np.sqrt(np.square(COLOUR_RGB[:, None] - COLOUR_RGB).sum(-1)) + 9 * np.eye(8)
    assert apart.min() > 0.6
    assert np.sqrt(np.square(COLOUR_RGB[:, None] - BACKGROUND_RGB).sum(-1)).min() > 1
