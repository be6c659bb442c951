"""Preference tuning: rows and what is wrong with them, pairs as data, the losses, and the verb from end to end."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import nomoat
from nomoat import preferring
from nomoat.cli.output import Lines
from nomoat.cli.preferring import prefer as command
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.data import pairs as pairs_module
from nomoat.data.imported import Imported
from nomoat.data.manifest import Manifest
from nomoat.data.pairs import Pairs, Scored
from nomoat.data.preference import preference
from nomoat.data.streams import UnreadableError
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.evaluate.preferred import Share, bag_of_words, preferred
from nomoat.families.dpo import DPO, pair_losses
from nomoat.families.kto import KTO, answer_losses
from nomoat.families.lm import LM, LanguageModel
from nomoat.families.orpo import ORPO, odds_losses
from nomoat.families.reward import Reward, RewardModel
from nomoat.nn.backbone import Backbone

FAST = ("batch_size=4", "precision=fp32", "optimizer.adam_learning_rate=0.01", "keep_every_seconds=1000")


def rows(count=40):
    """The chosen answer names a colour, the rejected one shouts."""
    colours = ("red", "blue", "green", "pink")
    return [
        {"prompt": f"colour {number}?", "chosen": colours[number % 4], "rejected": f"{colours[number % 4].upper()}!!"}
        for number in range(count)
    ]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def base(runs_root) -> Run:
    """A run of a very small language model of bytes."""
    config = LM(257, 96, Backbone(width=32, depth=1, heads=2))
    torch.manual_seed(0)
    data = Imported("nowhere", "0" * 64, "random weights")
    run = Run.create(None, "tiny", Recipe("tiny", config, data, Budget.parse("1steps"), batch_size=1))
    checkpoint.save(run.checkpoints, 0, {"weights": config.build({}).state_dict()}, {"step": 0})
    ByteTokenizer().save(run.path / "tokenizer.json")
    run.mark("done")
    return run


def prepared(base, path, **changes):
    data = Pairs(str(path), Ref(base.name), context_length=96, **changes)
    return data.prepare(path.parent / "made")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": [{"role": "user", "content": "a?"}], "chosen": "b", "rejected": "c"},
        {"instruction": "a?", "input": "", "chosen": "b", "rejected": "c", "output": "b"},
        {
            "conversations": [{"from": "human", "value": "a?"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {
            "chosen": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "c"}],
        },
        {"instruction": "a?", "baseline": "c", "candidate": "b", "preference": 1.9},
        {"instruction": "a?", "baseline": "b", "candidate": "c", "preference": 1.0},
    ],
)
def test_every_form_says_the_same(row):
    found = preference(row)
    assert [*found.prompt] == [{"role": "user", "content": "a?"}]
    assert (found.chosen, found.rejected) == ("b", "c")


@pytest.mark.parametrize(("label", "good"), [(True, True), (0, False), ("good", True), ("Bad", False), (1, True)])
def test_single_answers_are_good_or_bad(label, good):
    found = preference({"prompt": "a?", "completion": "b", "label": label})
    assert (found.chosen, found.rejected, found.good) == ("b", None, good)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a?", "chosen": "b"}, "a missing side"),
        ({"prompt": "a?", "chosen": "", "rejected": "c"}, "a missing side"),
        ({"prompt": "a?", "chosen": "b", "rejected": [{"role": "user", "content": "c"}]}, "a missing side"),
        ({"prompt": "a?", "completion": "b", "label": "meh"}, "a label that is neither good nor bad"),
        ({"prompt": "a?", "completion": "b", "label": None}, "a label that is neither good nor bad"),
        ({"messages": [{"role": "user", "content": "a?"}]}, "a conversation without a second side"),
        ({"chosen": "b", "rejected": "c"}, "no prompt"),
        ({"prompt": [{"role": "wizard", "content": "a"}], "chosen": "b", "rejected": "c"}, "unknown role"),
        ({"instruction": "a?", "baseline": "b", "candidate": "c", "preference": 1.5}, "no side is preferred"),
        ({}, "no pair in it"),
    ],
)
def test_a_broken_row_has_a_reason(row, reason):
    with pytest.raises(UnreadableError) as caught:
        preference(row)
    assert caught.value.reason == reason


def test_what_cannot_teach_is_left_out_and_counted(base, tmp_path):
    bad = [
        {"prompt": "same?", "chosen": "x", "rejected": "x "},
        {"prompt": "w" * 200, "chosen": "x", "rejected": "y"},
        {"prompt": "both?", "chosen": "x", "rejected": "y"},
        {"prompt": "both?", "chosen": "y", "rejected": "x"},
        {"prompt": "cut?", "chosen": "x" * 200, "rejected": "x" * 300},
        {"prompt": "one?", "completion": "x", "label": True},
        rows()[0],
    ]
    made = Manifest.load(prepared(base, write(tmp_path / "p.jsonl", rows() + bad), scored=False).folder)
    assert made.dropped == {
        "equal sides": 1,
        "a prompt longer than the context": 1,
        "equal sides, once they are cut to the context": 1,
        "a single answer, from which `--by kto` learns": 1,
        "duplicate": 1,
        "a row that another one contradicts": 2,
    }
    assert made.splits["train"]["documents"] + made.splits["heldout"]["documents"] == 40
    assert made.splits["heldout"]["documents"] == 4


@pytest.mark.parametrize(
    ("found", "changes", "said"),
    [
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3, {}, "tune"),
        ([{"instruction": "a", "output": "b"}], {}, "tune"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "equal sides"),
        ([], {}, "there are no rows"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, "the same prompt"),
        ([{"prompt": f"{n}", "completion": "b", "label": True} for n in range(9)], {"single": True}, "are good"),
    ],
)
def test_a_file_that_teaches_nothing_is_refused_with_the_way_out(base, tmp_path, found, changes, said):
    with pytest.raises(DataError, match=said):
        prepared(base, write(tmp_path / "p.jsonl", found), **changes)


def test_what_the_model_lacks_is_said(base, tmp_path):
    path = write(tmp_path / "p.jsonl", rows())
    with pytest.raises(ConfigError, match="no file or folder"):
        preferring.prefer(base, tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"no way `dop`"):
        preferring.prefer(base, path, by="dop")
    with pytest.raises(ConfigError, match="no field"):
        preferring.prefer(base, path, changes=["family.betta=1"])
    made = preferring.prefer(base, path, by="reward", budget="1steps", changes=FAST)
    with pytest.raises(ConfigError, match="no log-probability"):
        preferring.prefer(made, path, changes=FAST)
    (base.path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        prepared(base, path)


def test_only_the_answer_is_learned_and_both_sides_share_the_prompt(base, tmp_path):
    opened = Scored(prepared(base, write(tmp_path / "p.jsonl", rows()), scored=False))
    spell = ByteTokenizer().decode
    for item in range(len(opened.held)):
        (chosen, start), (rejected, other) = opened.row(item, 0), opened.row(item, 1)
        assert start == other and np.array_equal(chosen[:start], rejected[:start])
        assert spell(rejected[start:]).strip() == spell(chosen[start:]).strip().upper() + "!!"
    batch = opened.batch(np.arange(3))
    for item in range(3):
        mask, tokens = batch["mask"][item, 0], batch["tokens"][item, 0]
        assert spell(tokens[mask].numpy()).strip() in ("red", "blue", "green", "pink")


def test_the_held_out_part_depends_on_the_contents_alone(base, tmp_path):
    ordered = Scored(prepared(base, write(tmp_path / "a.jsonl", rows()), scored=False))
    (tmp_path / "b").mkdir()
    with gzip.open(tmp_path / "b" / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in reversed(rows()))
    turned = Scored(prepared(base, tmp_path / "b", scored=False))
    for name in ("tokens", "ends", "held"):
        assert np.array_equal(getattr(ordered, name), getattr(turned, name))


@pytest.mark.parametrize("single", [False, True])
def test_any_step_at_any_world_size_reads_the_same(base, tmp_path, single):
    data = prepared(base, write(tmp_path / "p.jsonl", rows()), single=single)
    whole = data.stream(None, 4, seed=3)
    steps = [next(whole) for _ in range(40)]
    later = next(data.stream(None, 4, seed=3, start=30))
    assert all(torch.equal(later[name], steps[30][name]) for name in later)
    halves = [next(data.stream(None, 4, 3, start=30, rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([half["index"] for half in halves]).sort().values, later["index"])
    held = list(data.held_out(None, 4, 10_000))
    assert sum(len(batch["index"]) for batch in held) == 4 * (1 + single)
    assert data.changed() == []
    write(tmp_path / "p.jsonl", rows(41))
    assert data.changed()


def test_the_reference_is_computed_once(base, tmp_path, monkeypatch):
    path = write(tmp_path / "p.jsonl", rows())
    first = Scored(prepared(base, path))
    monkeypatch.setattr(pairs_module, "load", lambda run: pytest.fail("scored twice"))
    again = Scored(prepared(base, path))
    assert np.array_equal(first.reference, again.reference)
    model, item = load(base), 5
    ids, start = first.row(item, 1)
    mask = torch.arange(len(ids)) >= start
    one = model.score({"tokens": torch.tensor(ids)[None], "mask": mask[None]}).sum()
    assert float(one) == pytest.approx(first.reference[item, 1], rel=2e-2), "bf16 or fp32, whichever is fast"


def test_single_answers_have_another_ones_answer_beside_them(base, tmp_path):
    opened = Scored(prepared(base, write(tmp_path / "p.jsonl", rows()), single=True, scored=False))
    differ = 0
    for item in range(len(opened.held)):
        (own, start), (other, _) = opened.row(item, 0), opened.row(item, 1)
        assert np.array_equal(own[:start], other[:start])
        differ += not np.array_equal(own, other)
    assert differ > 60 and opened.label.sum() == 40
    good, bad = opened.couples(held=True).T // 2
    assert (opened.prompt[good] == opened.prompt[bad]).all() and opened.label[good].all()


@given(st.lists(st.tuples(*[st.floats(-60, -0.01)] * 4), min_size=1, max_size=8), st.floats(0.01, 2))
def test_the_losses_are_the_papers_formulas(drawn, beta):
    logp_B2 = torch.tensor([row[:2] for row in drawn], dtype=torch.float64)
    reference_B2 = torch.tensor([row[2:] for row in drawn], dtype=torch.float64)
    good_B = torch.arange(len(drawn)) % 2 == 0
    config = KTO(beta=beta, good=1.5)
    kto_B = answer_losses((logp_B2 - reference_B2)[:, 0], torch.full((len(drawn),), 0.5).double(), good_B, config)
    dpo_B, orpo_B = pair_losses(logp_B2, reference_B2, beta)[0], odds_losses(logp_B2 / 10)[0]
    for place, (chosen, rejected, c_before, r_before) in enumerate(drawn):
        margin = beta * ((chosen - c_before) - (rejected - r_before))
        assert float(dpo_B[place]) == pytest.approx(math.log1p(math.exp(-margin)) if margin > -30 else -margin, 1e-5)
        odds = [math.exp(one / 10) / (1 - math.exp(one / 10)) for one in (chosen, rejected)]
        assert float(orpo_B[place]) == pytest.approx(math.log(1 + odds[1] / odds[0]), 1e-4)
        moved = beta * (chosen - c_before - 0.5) * (1 if good_B[place] else -1)
        weight = 1.5 if good_B[place] else 1.0
        assert float(kto_B[place]) == pytest.approx(weight / (1 + math.exp(moved)), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("config", [DPO.tiny(), replace(DPO.tiny(), nll=1.0), ORPO.tiny(), KTO.tiny()])
def test_the_product_is_what_it_wraps(config):
    family = config.build({})
    assert family.product is family.policy and isinstance(family.product, LanguageModel)
    assert config.product == family.policy.config
    assert family.kept().keys() == family.policy.state_dict().keys()
    other = config.build({})
    other.take(family.kept())
    batch = family.draw(family.example(4), torch.Generator())
    assert torch.equal(other.loss(batch).total, family.loss(batch).total)
    assert family.loss(batch).total.item() / 4 == pytest.approx(family.first_loss(batch), rel=1e-5)


@pytest.mark.parametrize("config", [{"beta": 0}, {"beta": -1.0}])
@pytest.mark.parametrize("kind", [DPO, ORPO, KTO])
def test_a_weight_that_teaches_nothing_is_refused(kind, config):
    with pytest.raises(ConfigError, match="above zero"):
        kind(**config)


def test_pairs_without_a_reference_are_refused():
    family = DPO.tiny().build({})
    batch = family.example()
    del batch["reference"]
    with pytest.raises(ConfigError, match="before training"):
        family.loss(batch)


def test_a_reward_does_not_see_beyond_the_answer():
    family = Reward.tiny().build({})
    torch.nn.init.normal_(family.head.weight)
    batch = {name: tensor.flatten(0, 1) for name, tensor in family.example(2).items() if name in ("tokens", "mask")}
    longer = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in batch.items()}
    assert family.score(batch).shape == (4, 1)
    torch.testing.assert_close(family.score(batch), family.score(longer))


@pytest.mark.parametrize("by", ["dpo", "orpo", "kto"])
def test_a_preference_tuned_model_is_a_language_model_again(base, tmp_path, by):
    told = []
    run = preferring.prefer(base, write(tmp_path / "p.jsonl", rows()), by, None, "60steps", FAST, watch=told.append)
    report = run.read_json("report.json")
    assert report["reward"]["value"] == 1.0 and report["after"]["value"] == 1.0 and report["margin"] > 3
    assert {"score", "step"} <= {event["kind"] for event in told}
    model = load(run)
    assert isinstance(model, LanguageModel) and model.config == base.recipe.family
    assert nomoat.generate(run, "colour", max_tokens=3) is not None
    assert nomoat.evaluate(run, write(tmp_path / "t.txt", rows(3))).value > 0
    written = nomoat.export(run, "hf", tmp_path / "hf")
    assert isinstance(load(nomoat.import_model(written)), LanguageModel)
    assert nomoat.quantize(run, 8, tmp_path / "t.txt").status == "done"
    text = (run.path / "card.md").read_text()
    assert "## Preference" in text and "LM" in text and "p.jsonl" in text
    assert run.status == "done" and nomoat.resume(run) is run


def test_a_reward_model_is_learned_and_kept(base, tmp_path):
    run = preferring.prefer(base, write(tmp_path / "p.jsonl", rows()), "reward", None, "60steps", FAST)
    assert run.read_json("report.json")["reward"]["value"] == 1.0
    assert isinstance(load(run), RewardModel)
    before, after = load(base).state_dict(), load(run).policy.state_dict()
    assert before.keys() == after.keys()


@pytest.mark.parametrize("by", ["dpo", "reward"])
def test_an_adapter_learns_as_well(base, tmp_path, by):
    run = preferring.prefer(base, write(tmp_path / "p.jsonl", rows()), by, 4, "60steps", FAST)
    assert run.read_json("report.json")["reward"]["value"] > 0.7
    sizes = [(each.path / "checkpoints") for each in (base, run)]
    small, large = (sum(file.stat().st_size for file in path.rglob("weights.safetensors")) for path in sizes[::-1])
    assert small < large


def test_a_killed_run_goes_on_to_the_same_end(base, tmp_path):
    path = write(tmp_path / "p.jsonl", rows())
    whole = preferring.prefer(base, path, "dpo", None, "8steps", (*FAST, "keep_every_seconds=0"))
    copied = Run.open(shutil.copytree(whole.path, whole.path.with_name("2026-01-01-copied-00000000")))
    shutil.rmtree(copied.checkpoints / "step-8")
    assert checkpoint.latest(copied.checkpoints).step == 7
    (copied.path / "report.txt").unlink()
    copied.mark("stopped")
    resumed = nomoat.resume(copied)
    ours, theirs = load(resumed).state_dict(), load(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (resumed.path / "report.txt").read_text() == (whole.path / "report.txt").read_text()


def test_a_bag_of_words_finds_a_style_and_no_meaning():
    texts = {n: ("it is fine" if n % 2 == 0 else "it is stupid") for n in range(40)}
    couples = np.arange(40).reshape(-1, 2)
    assert bag_of_words(texts, couples[:15], couples[15:]).value == 1.0
    same = dict.fromkeys(range(40), "it is fine")
    assert bag_of_words(same, couples[:15], couples[15:]).value == 0.5


def test_it_is_said_when_the_chosen_answers_become_less_likely():
    couples = np.arange(40).reshape(-1, 2)
    before = np.full(40, -10.0, dtype=np.float32)
    after = before - np.tile([1.0, 9.0], 20).astype(np.float32)
    fell = preferred("p", couples, before, after, Share(0.5, 0.4, 0.6))
    assert fell.reward.value == 1.0 and fell.before.value == 0.5 and fell.margin == 8.0
    assert "less likely" in fell.as_text() and "less likely" in fell.as_markdown()
    rose = preferred("p", couples, before, after + 2, Share(1.0, 0.9, 1.0))
    assert len(rose.warnings) == 1 and "differ in style" in rose.as_text()


def test_the_command_ends_with_one_object(base, tmp_path, capfd):
    from nomoat.cli.entry import main

    path = write(tmp_path / "p.jsonl", rows())
    words = ["prefer", base.name, str(path), "--budget", "2steps", "--beta", "0.2", "--set", "precision=fp32", "--json"]
    assert main(words) == 0
    last = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert last["report"]["couples"] == 4 and Path(last["run"]).is_dir()
    assert Run.open(last["run"]).recipe.family.beta == 0.2
    assert CliRunner().invoke(command, [base.name, str(path), "--full", "--lora", "4"], obj=Lines()).exit_code == 2


def test_the_display_says_what_the_loss_is_divided_by() -> None:
    from nomoat.cli.display import _facts
    from nomoat.cli.standing import Standing

    standing = Standing()
    for event in (
        {"kind": "phase", "phase": "training", "step": 0, "steps": 4, "counts": "pair"},
        {"kind": "step", "step": 1, "training_loss": 0.5},
    ):
        standing.fold(event)
    assert any("0.500 nats per pair" in fact for fact in _facts(standing))
