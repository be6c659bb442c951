"""Countdown as text: there and back, every fault named, only legal lines where only those are allowed; training."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.config import from_json, to_json
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import find
from nomoat.data.countdown import CountdownProblems
from nomoat.data.words import WordTokenizer
from nomoat.families.lm import LM
from nomoat.games.countdown import Countdown
from nomoat.games.countdown_problems import HELD_TARGETS, problems, split_of
from nomoat.games.countdown_text import FILLED, Notation, verify
from nomoat.nn.backbone import Backbone
from nomoat.train.state import build

NOTATIONS = {numbers: Notation(Countdown(numbers)) for numbers in (3, 4, 5, 6)}
FOUR = NOTATIONS[4]
MADE = {numbers: problems(notation.game, "train", 0, np.arange(64)) for numbers, notation in NOTATIONS.items()}
PROBLEM = "96 25 7 4 > 54 |"


def ids_of(text, notation=FOUR):
    """Ids of words with spaces between, begun by the document end."""
    ids = {word: number for number, word in enumerate(notation.words)} | {".": notation.eot}
    return np.array([[notation.eot, *(ids[word] for word in text.split())]])


def faults_of_text(text):
    return verify(PROBLEM, [text])[0].detail


@given(st.sampled_from(sorted(NOTATIONS)), st.integers(0, 63))
def test_there_and_back(numbers, row):
    notation, (state_B, action_BS) = NOTATIONS[numbers], MADE[numbers]
    one = slice(row, row + 1)
    ids_BL = notation.spell(state_B[one], action_BS[one])
    assert ids_BL.shape == (1, 7 * numbers - 2) and notation.length == 7 * numbers - 2
    reading = notation.read(ids_BL)
    assert (reading.action_BS == action_BS[one]).all() and (reading.problem_B == state_B[one]).all()
    assert reading.solved.all() and not reading.fault_B.any() and notation.fault(ids_BL[0]) == ""
    text = notation.show(ids_BL[0])
    assert verify(text, [text])[0].right
    assert (notation.parse(text) == state_B[one]).all()
    words = WordTokenizer(notation.words)
    assert [words.eot, *words.encode(text), words.eot] == ids_BL[0].tolist()
    assert words.vocab_size == notation.vocab_size == 1009 and words.words == notation.words


def test_it_reads_as_people_write():
    state_B = FOUR.parse("4 7 25 96 > 54")
    ids_BL = FOUR.spell(state_B, np.array([[1, 1, 2]]))
    assert FOUR.show(ids_BL[0]) == "96 25 7 4 > 54 | 96-25=71 ; 71-7=64 ; 64*4=256"
    assert FOUR.fault(ids_BL[0]) == "it ends at 256, not at 54"
    right = [
        "100*1=100 ; 100+10=110",
        "1*10 = 10;10+100=110 ;",
        "10 / 1=10\n100+10=110\n",
        "9 > 9 | 100*1=100;100+10=110",
    ]
    assert [verdict.score for verdict in verify("1 10 100 > 110 |", right)] == [1.0] * 4
    assert verify("90 80 7 1 > 7208", ["90*80=7200 ; 7200+7=7207 ; 7207+1=7208"])[0].right, "no limit holds for text"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("96-25=71 ; 71-7=64 ; 64-4=60", "it ends at 60, not at 54"),
        ("96-25=70 ; 70-7=63 ; 63-4=59", "line 1: 96-25 is 71, not 70"),
        ("96-25=71 ; 96-7=89 ; 89-4=85", "line 2: there is no 96 left"),
        ("25-7=18 ; 18/4=4 ; 96-4=92", "line 2: 18 cannot be divided by 4"),
        ("7-7=0 ; 96-25=71 ; 71-4=67", "line 1: there is no 7 left"),
        ("4-7=3", "line 1: 4-7 is -3, not 3"),
        ("96-25=71 ; 71-7=64", "2 numbers are left: 4, 64"),
        ("", "line 1 is no step: ``"),
        ("96-25=71 ; so 71-7", "line 2 is no step: `so 71-7`"),
        ("96-25=71 ; 71-7=64 ; 64-4=60 ; 60-6=54", "line 4: there is no 6 left"),
        ("9" * 12, "line 1 is no step"),
        ("96-25=71" + " " * 1000, "it has more than 1,000 characters"),
    ],
)
def test_every_fault_is_named(text, words):
    assert faults_of_text(text).startswith(words)


def test_a_division_by_nothing_is_named():
    assert verify("5 5 3 2 > 9", ["5-5=0 ; 3/0=3"])[0].detail == "line 2: 3 cannot be divided by 0"
    assert verify("5 5 3 2 > 9", ["5-5=0 ; 0/3=0"])[0].detail == "2 numbers are left: 0, 2"


@settings(max_examples=150)
@given(st.integers(0, 63), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 999)), max_size=2))
def test_domain_and_text_alone_say_the_same(row, changes):
    """Of a solution with up to two places changed, in most cases into a fault."""
    state_B, action_BS = (each[row : row + 1] for each in MADE[4])
    ids_BL = FOUR.spell(state_B, action_BS)
    for line, place, number in changes:
        kinds = FOUR.operation_ids if place == 1 else FOUR.number_ids
        ids_BL[0, FOUR.prompt_length + 6 * line + FILLED[place]] = kinds[number % len(kinds)]
    verdict = verify(FOUR.show(ids_BL[0]), [FOUR.show(ids_BL[0])])[0]
    assert FOUR.read(ids_BL).solved[0] == verdict.right
    assert FOUR.fault(ids_BL[0]) == verdict.detail


def test_numbers_of_a_sum_may_be_turned_round_and_those_of_a_difference_not():
    turned = ids_of("96 25 7 4 > 54 | 25 + 96 = 121 ; 4 * 7 = 28 ; 121 - 28 = 93 .")
    assert FOUR.read(turned).fault_B[0] == 0
    wrong = ids_of("96 25 7 4 > 54 | 25 - 96 = 71 ; 71 - 7 = 64 ; 64 - 4 = 60 .")
    reading = FOUR.read(wrong)
    assert reading.fault_B[0] == 1 and (reading.action_BS == -1).all() and reading.state_B["count"][0] == 4


def test_what_the_domain_forbids_and_the_text_does_not_is_named():
    ids_BL = ids_of("96 25 7 4 > 54 | 96 * 25 = 999 ; 999 - 7 = 992 ; 992 - 4 = 988 .")
    assert FOUR.fault(ids_BL[0]) == "line 1: 96*25 is 2400, not 999"
    tight = Notation(Countdown(4, 100))
    ids_BL = ids_of("60 50 20 10 > 100 | 60 + 50 = 100 ; 100 + 20 = 100 ; 100 - 10 = 90 .", tight)
    assert tight.read(ids_BL).fault_B[0] == 1
    loose = ids_of("96 25 7 4 > 54 | 96 ; 25 = 71 ; 71 - 7 = 64 ; 64 - 4 = 60 .")
    assert FOUR.read(loose).fault_B[0] == 1 and "no step" in FOUR.fault(loose[0])


def test_a_row_may_end_early_or_in_the_middle():
    ids_BL = ids_of("96 25 7 4 > 54 | 96 - 25 = 71 ; 71 - 7 = 64 ; 64 - 4 = 60 .")
    for tokens, lines in ((8, 0), (13, 0), (14, 1), (20, 2), (26, 3)):
        reading = FOUR.read(ids_BL[:, :tokens])
        assert (reading.action_BS[0] >= 0).sum() == lines and reading.fault_B[0] == 0
        assert reading.state_B["count"][0] == 4 - lines
    for short in (ids_BL[:, :7], ids_BL[:, 1:], ids_of("96 25 7 > 54 | 1 + 2")):
        with pytest.raises(DataError, match="problem of 4 numbers"):
            FOUR.read(short)
    for text in ("96 25 7 > 54 |", "96 25 7 4 5", "96 25 7 4 > 5000", "a b c d > 54"):
        with pytest.raises(DataError, match="is no problem"):
            FOUR.parse(text)


@pytest.mark.parametrize("numbers", [3, 4, 6])
def test_what_is_allowed_token_by_token_is_every_legal_line_and_no_other(numbers):
    """Rows drawn from left to right by chance are legal; and at each place all tokens of legal lines are allowed."""
    notation, generator = NOTATIONS[numbers], np.random.default_rng(numbers)
    state_B = MADE[numbers].state_B[:16]
    ids_BL = notation.blank(state_B)[0][:, : notation.prompt_length]
    while ids_BL.shape[1] < notation.length:
        allowed_BV = notation.allowed(ids_BL)[:, ids_BL.shape[1]]
        if (ids_BL.shape[1] - notation.prompt_length) % 6 == 0:
            here_B = notation.read(ids_BL).state_B
            parts = notation.game.parts(here_B)
            for row in range(len(here_B)):
                firsts = parts.a_BA[row, parts.c_BA[row] >= 0]
                assert set(np.flatnonzero(allowed_BV[row])) == set(notation.number_ids[firsts].tolist())
        token_B = (generator.random(allowed_BV.shape) * allowed_BV).argmax(1)
        ids_BL = np.column_stack((ids_BL, token_B))
    reading = notation.read(ids_BL)
    assert not reading.fault_B.any() and (reading.state_B["count"] == 1).all()


def test_what_is_allowed_agrees_with_what_is_filled():
    ids_BL, open_BL = FOUR.blank(FOUR.parse(PROBLEM))
    assert open_BL.sum() == 12 and FOUR.show(ids_BL[0]).startswith(PROBLEM)
    at = FOUR.prompt_length + FILLED
    ids_BL[0, at[3]], open_BL[0, at[3]] = FOUR.number_ids[28], False
    said = FOUR.allowed(ids_BL, open_BL)[0]
    assert [[FOUR.words[token] for token in np.flatnonzero(said[place])] for place in at] == [
        ["7"],
        ["*"],
        ["4"],
        ["28"],
    ]
    assert said[at[0] + 6].sum() == 1000 and said[at[1] + 6].sum() == 4, "later lines: of the right kind"
    ids_BL[0, at[3]] = FOUR.number_ids[13]
    assert FOUR.allowed(ids_BL, open_BL)[0, at[0]].sum() == 1000, "no line gives 13"
    ids_BL[0, at], open_BL[0, at] = [FOUR.number_ids[96], 1, FOUR.number_ids[25], FOUR.number_ids[121]], False
    second = FOUR.allowed(ids_BL, open_BL)[0, at[0] + 6]
    assert [FOUR.words[token] for token in np.flatnonzero(second)] == ["121", "7"]


# training data


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("data", [CountdownProblems(), CountdownProblems(sizes=(3, 4, 5), limit=500)])
def test_a_sample_is_the_same_however_it_is_come_by(data):
    whole = next(data.stream(None, 12, seed=5, start=3))
    assert whole["index"].tolist() == list(range(36, 48))
    stream = data.stream(None, 12, seed=5)
    for _ in range(3):
        next(stream)
    assert same(next(stream), whole)
    for rank in range(3):
        part = next(data.stream(None, 12, seed=5, start=3, rank=rank, world=3))
        assert same(part, {name: value[rank::3] for name, value in whole.items()})
    assert not torch.equal(next(data.stream(None, 12, seed=6, start=3))["tokens"], whole["tokens"])


def test_the_solution_is_learned_and_nothing_else():
    data = CountdownProblems(sizes=(3, 4, 5))
    batch = next(data.stream(None, 60, seed=0))
    seen = set()
    for tokens_L, mask_L, document_L in zip(batch["tokens"], batch["mask"], batch["document"], strict=True):
        length = int((document_L == 0).sum())
        notation = NOTATIONS[(length + 2) // 7]
        seen.add(notation.game.numbers)
        assert notation.read(tokens_L[None, :length].numpy()).solved.all()
        learned = torch.arange(len(mask_L))
        assert torch.equal(mask_L, (learned >= notation.prompt_length) & (learned < length))
        assert (tokens_L[length:] == notation.eot).all() and (document_L[length:] == -1).all()
    assert seen == {3, 4, 5}
    assert "document" not in next(CountdownProblems().stream(None, 2, seed=0))


def test_held_out_problems_are_neither_trained_on_nor_tested():
    data = CountdownProblems()
    batches = list(data.held_out(None, 40, 100 * 25))
    assert [len(batch["tokens"]) for batch in batches] == [40, 40, 20]
    for batch in batches:
        assert (split_of(FOUR.read(batch["tokens"].numpy()).problem_B) == 1).all()
    trained = FOUR.read(next(data.stream(None, 64, seed=0))["tokens"].numpy()).problem_B
    assert (split_of(trained) == 0).all() and not np.isin(trained["target"], HELD_TARGETS).any()


def test_it_says_what_does_not_fit():
    data = CountdownProblems(sizes=(4, 5))
    assert from_json(to_json(data)) == data and data.paths == () and data.changed() == []
    assert data.context_length == 32 and data.vocab_size == 1009 and data.words().vocab_size == 1009
    fits = LM(vocab_size=1009, context_length=32)
    assert next(data.stream(SimpleNamespace(config=fits), 2, 0))["tokens"].shape == (2, 33)
    for name, value in (("vocab_size", 1008), ("context_length", 31)):
        with pytest.raises(ConfigError, match=f"set family.{name}="):
            data.stream(SimpleNamespace(config=replace(fits, **{name: value})), 2, 0)
    for sizes in ((), (4, 4), (2,), (9,)):
        with pytest.raises(ConfigError):
            CountdownProblems(sizes=sizes)


def test_numbers_begin_as_waves_of_their_values() -> None:
    recipe = find("countdown-small")
    small = replace(recipe.family, backbone=Backbone(width=128, depth=1, heads=2))
    waves, plain = (
        build(
            replace(recipe, family=small, data=replace(recipe.data, waves=waves)), torch.device("cpu")
        ).embed.weight.detach()
        for waves in (True, False)
    )
    numbers = torch.from_numpy(recipe.data.notations()[0].number_ids)
    changed = (waves != plain).any(1)
    assert changed[numbers].all() and int(changed.sum()) == len(numbers), "signs stay as they were"
    assert (waves != plain).any(0).nonzero()[:, 0].tolist() == list(range(60)), "at most half of the columns"
    linear = [*range(23), *range(30, 53)]
    row = waves[numbers][:, linear]
    torch.testing.assert_close(row[10] @ row[13], row[810] @ row[813])  # one step is the same turn everywhere
    assert row[10] @ row[11] > row[10] @ row[500]
    assert 0.7 < float(waves.std() / plain.std()) < 1.3
    masked = find("countdown-masked-small")
    hidden, bare = (
        build(replace(masked, data=replace(masked.data, waves=waves)), torch.device("cpu")).embed.weight
        for waves in (True, False)
    )
    assert (hidden != bare).any(1).nonzero()[:, 0].tolist() == numbers.sort().values.tolist()
