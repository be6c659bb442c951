"""Judging: both orders, ties, lengths, the ladder, what a judge is worth, and the verbs on files and runs."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat import judging as verbs
from nomoat.cli.entry import main
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.teacher import Answer
from nomoat.data.chat import Chat
from nomoat.data.imported import Imported
from nomoat.data.preferences import preferred, prompts_of
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.evaluate import judges
from nomoat.evaluate.judging import Longer, Pair, Votes, agreement, ask, compare, drawn, length_controlled, refuses
from nomoat.evaluate.ladder import ladder
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

TEXTS = st.text("ab ", max_size=6)
PAIRS = st.lists(st.builds(Pair, TEXTS, TEXTS, TEXTS), min_size=1, max_size=12)


class AlwaysFirst:
    """Says A, whatever it is shown."""

    name = "first"

    def votes(self, pairs):
        return np.ones(len(pairs))


class Scripted:
    """Answers what it was told to, in turns."""

    name, licence, terms = "scripted", "CC0-1.0", ""

    def __init__(self, *texts):
        self.texts, self.asked = texts, []

    def answer(self, messages, max_tokens=512, temperature=0.7, top_p=1.0, seed=None):
        self.asked.append(messages[-1]["content"])
        return Answer(self.texts[len(self.asked) % len(self.texts)])


@given(PAIRS)
def test_a_judge_that_always_says_a_gives_ties_only(pairs) -> None:
    found = compare(ask(AlwaysFirst(), pairs), pairs)
    assert (found.wins, found.ties, found.losses, found.invalid) == (0, len(pairs), 0, 0)
    assert (found.rate, found.low, found.high, found.controlled) == (0.5, 0.5, 0.5, 0.5)
    assert (found.shown_first, found.swayed) == (1.0, 1.0)


@given(PAIRS)
def test_a_against_a_is_fifty_percent_exactly(pairs) -> None:
    same = [Pair(pair.prompt, pair.first, pair.first) for pair in pairs]
    for judge in (Longer(), AlwaysFirst()):
        found = compare(ask(judge, same), same)
        assert (found.rate, found.controlled, found.longer, found.ties) == (0.5, 0.5, 0.5, len(same))


@given(PAIRS)
def test_swapped_sides_mirror_the_result(pairs) -> None:
    found = compare(ask(Longer(), pairs), pairs)
    mirror = compare(ask(Longer(), swapped := [pair.swapped() for pair in pairs]), swapped)
    assert (mirror.wins, mirror.ties, mirror.losses) == (found.losses, found.ties, found.wins)
    for ours, theirs in (("rate", "rate"), ("low", "high"), ("high", "low"), ("longer", "longer")):
        assert getattr(mirror, ours) == pytest.approx(1 - getattr(found, theirs))
    for ours, theirs in (("controlled", "controlled"), ("controlled_low", "controlled_high")):
        assert getattr(mirror, ours) == pytest.approx(1 - getattr(found, theirs), abs=1e-6)
    assert (mirror.shown_first, mirror.swayed) == (found.shown_first, found.swayed)


def test_a_verdict_needs_both_orders() -> None:
    nan = float("nan")
    votes = Votes(np.array([2.0, -1, 1, -1, 1, 0, nan, 1]), np.array([-3.0, 1, 1, -1, 0, 0, 1, nan]))
    assert votes.verdicts[:6].tolist() == [1, -1, 0, 0, 0, 0]
    assert np.isnan(votes.verdicts[6:]).all()
    assert votes.swayed == 2 / 6
    assert votes.shown_first == pytest.approx((3 + 0.5 + 1 + 4 + 0.5 + 0.5) / 14, abs=0.08)


def test_length_alone_is_taken_out() -> None:
    chance = np.random.default_rng(0)
    gap_N = chance.normal(60, 100, 4000)
    for quality in (-0.7, 0.0, 0.9):
        true_N = 1 / (1 + np.exp(-(quality + 2.0 * np.tanh(gap_N / np.sqrt((gap_N**2).mean())))))
        score_N = (chance.random(4000) < true_N).astype(float)
        found = length_controlled(score_N, gap_N)[0]
        assert found == pytest.approx(1 / (1 + math.exp(-quality)), abs=0.03)
        assert quality != 0.0 or score_N.mean() > 0.6  # what the plain rate makes of it


def test_one_side_that_always_wins_gives_a_finite_rate() -> None:
    assert 0.95 < length_controlled(np.ones(50), np.zeros(50))[0] < 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("A", 1), ("b.", -1), ("**B**", -1), ("Answer: A", 1), ("I find answer B better", -1), ("The better one is A", 1),
     ("A and B are alike", None), ("neither", None), ("", None), ("both A and B", None), ("A's answer is", 1)],
)  # fmt: skip
def test_a_letter_is_read_from_what_a_judge_says(text, wanted) -> None:
    assert judges.letter(text) == wanted or (wanted is None and math.isnan(judges.letter(text)))


def test_a_judge_that_says_neither_is_counted_as_invalid() -> None:
    pairs = [Pair("q", "one", "two")] * 3
    found = compare(ask(judges.Spoken(Scripted("I cannot say.")), pairs), pairs)
    assert (found.invalid, found.wins + found.ties + found.losses) == (3, 0)
    assert math.isnan(found.rate)


def test_a_spoken_judge_is_shown_both_answers_in_their_order() -> None:
    answerer = Scripted("A")
    judges.Spoken(answerer).votes([Pair("the request", "the first", "the second")])
    shown = answerer.asked[0]
    assert shown.index("the request") < shown.index("the first") < shown.index("the second")


def test_refusals_are_found() -> None:
    assert all(map(refuses, ("", "  ", "I'm sorry, but no", "I cannot help", "As an AI language model, I")))
    assert not any(map(refuses, ("I can do that.", "Sorrel is a herb", "As an aid")))


def test_the_ladder_finds_known_strengths() -> None:
    known = np.array([0.0, 0.5, 1.0, 2.0])
    chance = np.random.default_rng(1)
    beats = 1 / (1 + np.exp(known[None] - known[:, None]))
    score_NXX = np.full((4000, 4, 4), np.nan)
    for x in range(4):
        for y in range(x):
            score_NXX[:, x, y] = chance.random(4000) < beats[x, y]
            score_NXX[:, y, x] = 1 - score_NXX[:, x, y]
    rungs = ladder("abcd", score_NXX)
    assert [rung.name for rung in rungs] == ["d", "c", "b", "a"]
    wanted = dict(zip("abcd", (known - known.mean()) * 400 / math.log(10), strict=True))
    for rung in rungs:
        assert rung.points == pytest.approx(wanted[rung.name], abs=15)
        assert rung.low < wanted[rung.name] < rung.high
        assert rung.high - rung.low < 40
    assert rungs[0].games == 12_000


def test_one_whom_nobody_judged_stands_in_the_middle_of_its_ladder() -> None:
    score_NXX = np.full((40, 3, 3), np.nan)
    score_NXX[:, 0, 1], score_NXX[:, 1, 0] = 1, 0
    best, middle, worst = ladder("abc", score_NXX)
    assert (middle.name, middle.games) == ("c", 0)
    assert best.points > middle.points > worst.points
    assert middle.high - middle.low < 1


def test_one_who_never_lost_has_finite_points() -> None:
    score_NXX = np.full((5, 2, 2), np.nan)
    score_NXX[:, 0, 1], score_NXX[:, 1, 0] = 1, 0
    best, worst = ladder("ab", score_NXX)
    assert 0 < best.points == pytest.approx(-worst.points)
    assert math.isfinite(best.high)


def reference(pairs: int, longer: float, seed: int = 0) -> list[Pair]:
    """Preferred first; so many of them with the longer answer preferred."""
    chance = np.random.default_rng(seed)
    return [Pair("q", "x" * (9 if chance.random() < longer else 3), "y" * 6) for _ in range(pairs)]


def test_a_judge_of_length_alone_is_exposed() -> None:
    found = agreement(Longer(), reference(200, 0.8))
    assert found.value == found.longer == pytest.approx(0.8, abs=0.1)
    assert (found.margin_low, found.shorter) == (0.0, 0.0)
    assert "taking the longer answer" in found.warning
    assert "warning" in found.as_text()


def test_a_judge_that_always_says_a_is_a_coin() -> None:
    found = agreement(AlwaysFirst(), reference(200, 0.8))
    assert found.value == 0.5
    assert "coin" in found.warning


def test_a_judge_that_knows_is_trusted() -> None:
    class Knows:
        name = "knows"

        def votes(self, pairs):
            return np.array([1.0 if pair.first[0] == "x" else -1.0 for pair in pairs])

    found = agreement(Knows(), reference(200, 0.8))
    assert (found.value, found.shorter, found.warning) == (1.0, 1.0, "")


def test_weights_undo_the_drawing_of_a_rare_kind() -> None:
    pairs = [*reference(50, 1.0), *reference(50, 0.0)]
    found = agreement(Longer(), pairs, np.repeat([18.0, 2.0], 50))
    assert found.value == pytest.approx(0.9)
    assert found.shorter_pairs == 50


# Judges that are models


def tiny_model(seed: int = 0):
    import torch

    torch.manual_seed(seed)
    model = LM(vocab_size=257, context_length=600, backbone=Backbone(width=32, depth=1, heads=1)).build({})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval().requires_grad_(False)


def test_letters_and_likelihood_mirror_and_leave_equals_alone() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    pairs = [Pair("say", "one", "another"), Pair("say", "x", "yy"), Pair("say", "same", "same")]
    for judge in (
        judges.Letters("tiny", model, tokenizer, Chat()),
        judges.likelihood("tiny", model, tokenizer, Chat()),
    ):
        votes = ask(judge, pairs)
        back = ask(judge, [pair.swapped() for pair in pairs])
        assert np.allclose(votes.forth_N, back.back_N, atol=1e-5, equal_nan=True)
        assert np.nan_to_num(votes.verdicts[2]) == 0


def test_letters_take_a_letters_own_weight_away() -> None:
    class Likes(judges.Letters):
        def _logit(self, pair):
            return 5.0 + (pair.first == "good") - (pair.second == "good")

    pairs = [Pair("q", "good", "bad"), Pair("q", "bad", "good"), Pair("q", "bad", "bad")]
    assert ask(Likes("likes", tiny_model(), ByteTokenizer(), Chat()), pairs).verdicts.tolist() == [1, -1, 0]


def test_a_judge_is_shown_what_fits_its_context() -> None:
    model = tiny_model()
    judge = judges.Letters("tiny", model, ByteTokenizer(), Chat())
    assert np.isfinite(judge._fitting(Pair("q", "a" * 5000, "b" * 5000))).all()
    with pytest.raises(ConfigError, match="too long for its judge"):
        judge.votes([Pair("q" * 5000, "a", "b")])


def test_a_reward_model_judges_by_its_scores() -> None:
    import torch

    class Counts(torch.nn.Module):
        config = LM(vocab_size=257, context_length=64)

        def score(self, batch):
            return (batch["tokens"] == ord("z")).sum(1, keepdim=True).float()

    model = Counts()
    assert judges.is_reward(model)
    assert not judges.is_reward(tiny_model())
    pairs = [Pair("q", "zz", "z"), Pair("q", "none", "z"), Pair("q", "z", "az")]
    assert ask(judges.reward("counts", model, ByteTokenizer(), Chat()), pairs).verdicts.tolist() == [1, -1, 0]


# The verbs


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path, runs_root, monkeypatch):
    monkeypatch.delenv("NOMOAT_SHARED", raising=False)
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\nthree\n", encoding="utf-8")
    jsonl(tmp_path / "long.jsonl", [{"answer": "a long answer"}] * 3)
    jsonl(tmp_path / "short.jsonl", [{"output": "short"}, {"output": "short"}, {"output": "the longest answer"}])
    jsonl(tmp_path / "middle.jsonl", ["shorter"] * 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_judge_compares_files_of_answers(files) -> None:
    found = verbs.judge("long.jsonl", "short.jsonl", "prompts.txt", "length")
    assert (found.comparison.wins, found.comparison.losses) == (2, 1)
    assert (found.a, found.b, found.judge, found.agreement) == ("long", "short", "length", None)
    assert [(each["winner"], each["prompt"]) for each in found.examples] == [("a", "one"), ("a", "two"), ("b", "three")]


def test_the_command_prints_and_writes_the_verdict(files, capfd) -> None:
    words = ["judge", "long.jsonl", "short.jsonl", "prompts.txt", "--judge", "length"]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "A wins 2, ties 0, loses 1 of 3" in said
    assert verbs.UNMEASURED in said
    assert json.loads((files / "judge.json").read_text())["comparison"]["wins"] == 2
    assert main([*words, "--json"]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (last["kind"], last["comparison"]["rate"]) == ("result", pytest.approx(2 / 3))


def test_an_arena_is_extended_without_judging_again(files, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(Longer, "votes", count(Longer.votes, asked))
    rungs, measured = verbs.arena(["long.jsonl", "short.jsonl"], "prompts.txt", "length")
    assert (len(rungs), measured, sum(asked)) == (2, None, 6)
    rungs, _ = verbs.arena(["middle.jsonl"], "prompts.txt", "length")
    assert {rung.name for rung in rungs} == {"long", "short", "middle"}
    assert sum(asked) == 6 + 12
    assert [rung.games for rung in rungs] == [6, 6, 6]
    before = (files / "arena.json").read_bytes()
    assert verbs.arena(["long.jsonl", "middle.jsonl"], "prompts.txt", "length")[0] == rungs
    assert sum(asked) == 18
    assert (files / "arena.json").read_bytes() == before


def count(votes, asked):
    def counted(self, pairs):
        asked.append(len(pairs))
        return votes(self, pairs)

    return counted


def test_the_arena_command_prints_a_ladder(files, capfd) -> None:
    assert main(["arena", "long.jsonl", "short.jsonl", "middle.jsonl", "prompts.txt", "--judge", "length"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].split() == ["points", "95", "%", "won", "games"]
    assert {line.split()[0] for line in said[1:4]} == {"long", "short", "middle"}


def test_the_judge_is_measured_once(files, monkeypatch) -> None:
    rows = [{"prompt": "q", "chosen": "a" * (9 if place % 2 else 2), "rejected": "b" * 5} for place in range(20)]
    options = verbs.Options(reference=jsonl(files / "reference.jsonl", rows))
    asked = []
    monkeypatch.setattr(Longer, "votes", count(Longer.votes, asked))
    first = verbs.judge("long.jsonl", "short.jsonl", "prompts.txt", "length", options)
    assert first.agreement is not None
    assert (first.agreement.pairs, first.agreement.value) == (20, 0.5)
    calls = len(asked)
    again = verbs.judge("long.jsonl", "short.jsonl", "prompts.txt", "length", options)
    assert again.agreement == first.agreement
    assert len(asked) - calls < calls


def test_a_reference_is_drawn_evenly_and_weighed(tmp_path) -> None:
    rows = [{"instruction": "q", "baseline": "long one", "candidate": "no", "preference": 1.1}] * 90
    rows += [{"instruction": "q", "baseline": "long one", "candidate": "no", "preference": 1.9}] * 10
    rows += [{"instruction": "q", "a": "x", "b": "y", "preference": 1.5}, {"instruction": "no answers"}]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    pairs, weight_N = drawn(preferred(path), 16)
    assert sum(pair.first == "no" for pair in pairs) == 8
    assert weight_N.sum() == pytest.approx(100)
    assert agreement(Longer(), pairs, weight_N).value == pytest.approx(0.9)


def test_alpaca_eval_exposes_length_and_a_coin(shared) -> None:
    pairs, weight_N = drawn(preferred(shared / "data" / "alpaca-eval-pairs" / "pairs.jsonl.gz"), 5000)
    found = agreement(Longer(), pairs, weight_N)
    assert found.pairs == 1987
    assert found.value == pytest.approx(0.905, abs=0.01)
    assert agreement(AlwaysFirst(), pairs, weight_N).value == 0.5


@pytest.fixture
def run(runs_root):
    from nomoat.core import checkpoint

    model = tiny_model()
    recipe = Recipe("Tiny.", model.config, Imported("nowhere", "0" * 64, "GGUF"), Budget.parse("1steps"), 1)
    made = Run.create(None, "tiny", recipe)
    checkpoint.save(made.checkpoints, 0, {"weights": model.state_dict()}, {"step": 0})
    ByteTokenizer().save(made.path / "tokenizer.json")
    made.mark("done")
    return made


def test_a_run_answers_and_judges(files, run) -> None:
    options = verbs.Options(max_tokens=4)
    found = verbs.judge(run, "short.jsonl", "prompts.txt", f"likelihood:{run.name}", options)
    assert found.comparison.invalid + found.comparison.wins + found.comparison.ties + found.comparison.losses == 3
    assert any("one of the contestants" in text for text in found.warnings)
    same = verbs.judge(run, run, "prompts.txt", "length", options)
    assert (same.comparison.ties, same.comparison.rate, same.warnings) == (3, 0.5, ())


# What can be wrong


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.txt", "\n \n", "holds no prompts"),
        ("empty.jsonl", "", "holds no prompts"),
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt":\n', "line 2"),
        ("other.jsonl", '{"prompt": "a"}\n{"title": "b"}\n', "line 2 has no prompt"),
        ("latin.txt", b"caf\xe9\n", "cannot be read"),
        ("picture.png", b"\x89PNG\xff", "cannot be read"),
    ],
)
def test_prompts_that_cannot_be_read(files, name, content, match) -> None:
    (files / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=match):
        verbs.judge("long.jsonl", "short.jsonl", name, "length")


def test_a_missing_file_of_prompts(files) -> None:
    with pytest.raises(DataError, match=r"nowhere.txt cannot be read"):
        prompts_of("nowhere.txt")


def test_prompts_of_alpaca_have_their_input(files) -> None:
    jsonl(files / "alpaca.jsonl", [{"instruction": "Add.", "input": "1 + 1"}, {"instruction": "Greet.", "input": ""}])
    assert prompts_of("alpaca.jsonl") == ["Add.\n\n1 + 1", "Greet."]


def test_fewer_answers_than_prompts(files) -> None:
    jsonl(files / "few.jsonl", [{"answer": "x"}] * 2)
    with pytest.raises(DataError, match=r"few.jsonl has 2 answers. there are 3 prompts"):
        verbs.judge("few.jsonl", "short.jsonl", "prompts.txt", "length")


def test_a_row_without_an_answer(files) -> None:
    jsonl(files / "holes.jsonl", [{"answer": "x"}, {"title": "x"}, {"answer": "x"}])
    with pytest.raises(DataError, match="line 2 has no answer"):
        verbs.judge("holes.jsonl", "short.jsonl", "prompts.txt", "length")


def test_a_contestant_named_twice(files) -> None:
    with pytest.raises(ConfigError, match="long is named twice"):
        verbs.arena(["long.jsonl", "long.jsonl"], "prompts.txt", "length")


def test_an_arena_of_one(files) -> None:
    with pytest.raises(ConfigError, match="only long"):
        verbs.arena(["long.jsonl"], "prompts.txt", "length")


def test_an_arena_of_other_prompts_another_judge_or_none(files) -> None:
    verbs.arena(["long.jsonl", "short.jsonl"], "prompts.txt", "length")
    (files / "others.txt").write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="another prompts"):
        verbs.arena(["middle.jsonl"], "others.txt", "length")
    jsonl(files / "long.jsonl", [{"answer": "changed since"}] * 3)
    with pytest.raises(ConfigError, match="other answers"):
        verbs.arena(["long.jsonl"], "prompts.txt", "length")
    (files / "arena.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no arena"):
        verbs.arena(["middle.jsonl"], "prompts.txt", "length")


def test_a_reference_without_preferences(files) -> None:
    for rows in ([{"prompt": "q", "a": "x", "b": "y"}], [{"prompt": "q", "a": "x", "b": "y", "preference": "c"}]):
        options = replace(verbs.Options(), reference=jsonl(files / "none.jsonl", rows))
        with pytest.raises(DataError, match="holds no preferences"):
            verbs.judge("long.jsonl", "short.jsonl", "prompts.txt", "length", options)


def test_a_judge_is_asked_for(files) -> None:
    assert main(["judge", "long.jsonl", "short.jsonl", "prompts.txt"]) == 2
    assert main(["judge", "long.jsonl", "short.jsonl", "prompts.txt", "--judge", "no-such-run"]) == 1
