"""Speculation: what is written is distributed as without drafts, and lookup drafts change no token at all."""

from __future__ import annotations

import math
import random

import pytest
import torch
from listening import MIXERS, Chain, Checked, Heard, tiny

from nomoat.core.device import generator
from nomoat.core.errors import NomoatError
from nomoat.sampling.speculate import MOST, Draft, ModelDrafts, NgramDrafts, Paced, accept
from nomoat.sampling.tokens import SamplingOptions, pick, probabilities
from nomoat.sampling.write import write
from nomoat.serve.ask import Ask
from nomoat.serve.engine import Engine

GREEDY = SamplingOptions(temperature=0)
CUT = SamplingOptions(0.8, 5, 0.95, 0.02)


def close_to(counts, expected, most_sigmas=5):
    """Pearson's chi-squared of counts [cells] against expected ones; what cannot come has not come."""
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum()) < freedom + most_sigmas * math.sqrt(2 * freedom)


def pair(seed=0, vocab_size=7):
    """Logits [V, V] of the next token after each, of a model and of a worse one."""
    noise = torch.randn(2, vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))
    return 1.5 * noise[0], 1.5 * noise[0] + 0.8 * noise[1]


@pytest.mark.parametrize("options", [SamplingOptions(), CUT, SamplingOptions(1.7, 0, 0.8)])
def test_twenty_thousand_tokens_of_a_pair_are_the_models(options):
    model_VV, small_VV = pair()
    p_VV, q_VV = probabilities(model_VV, options), probabilities(small_VV, options)
    guesses, chance = torch.Generator().manual_seed(1), generator(1, "row", 0)
    counts_VV, last, drawn, right, proposed = torch.zeros(7, 7), 0, 0, 0, 0
    ahead_VK = torch.multinomial(q_VV, 40_000, replacement=True, generator=guesses).tolist()  # drawn from q beforehand
    while drawn < 20_000:
        guess = [last]
        for _ in range(3):
            guess.append(ahead_VK[guess[-1]].pop())
        draft = Draft(tuple(guess[1:]), q_VV[guess[:3]])
        tokens = accept(model_VV[guess], draft, options, chance)
        for token in tokens:
            counts_VV[last, token] += 1
            last = token
        drawn, right, proposed = drawn + len(tokens), right + len(tokens) - 1, proposed + 3
    for row in range(7):
        assert close_to(counts_VV[row], counts_VV[row].sum() * p_VV[row])
    assert 0.3 < right / proposed < 0.95
    wrong_VV = probabilities(small_VV, options)  # the test would notice
    assert not all(close_to(counts_VV[row], counts_VV[row].sum() * wrong_VV[row]) for row in range(7))


def test_as_much_is_accepted_as_can_be():
    p_1V, q_1V = torch.tensor([[0.5, 0.3, 0.2, 0.0]]), torch.tensor([[0.2, 0.3, 0.1, 0.4]])
    chance, guesses = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    right, counts_V = 0, torch.zeros(4)
    for token in torch.multinomial(q_1V[0], 8000, replacement=True, generator=guesses).tolist():
        given = accept(p_1V.log().expand(2, 4), Draft((token,), q_1V), SamplingOptions(), chance)
        right += len(given) - 1
        counts_V[given[0]] += 1
    assert right / 8000 == pytest.approx(float(torch.minimum(p_1V, q_1V).sum()), abs=0.02)
    assert close_to(counts_V, 8000 * p_1V[0])


def test_equal_models_refuse_nothing_and_a_greedy_one_wants_its_own():
    model_VV, _ = pair()
    p_VV, chance = probabilities(model_VV, CUT), torch.Generator().manual_seed(0)
    for _ in range(200):
        guess = [0]
        for _ in range(4):
            guess.append(int(torch.multinomial(p_VV[guess[-1]], 1)))
        assert accept(model_VV[guess], Draft(tuple(guess[1:]), p_VV[guess[:4]]), CUT, chance)[:4] == guess[1:]
    best = model_VV.argmax(1).tolist()
    way = [0, best[0], best[best[0]]]
    for draft in (Draft((*way[1:], 0)), Draft((*way[1:], 0), probabilities(model_VV, CUT)[[0, 1, 2]])):
        wanted = best[way[2]]
        given = accept(model_VV[[*way, 0]], draft, GREEDY, chance)
        assert given == [*way[1:], wanted, best[0]][: 3 + (wanted == 0)]
    with pytest.raises(NomoatError):
        accept(torch.full((2, 7), math.nan), Draft((1,)), CUT, chance)


@pytest.mark.parametrize("options", [GREEDY, SamplingOptions(), CUT])
def test_one_guess_changes_no_token(options):
    logits_LV = 2 * torch.randn(9, 7, generator=torch.Generator().manual_seed(3))
    truth = [int(pick(logits_LV[row : row + 1], options, chance)) for chance in [generator(5)] for row in range(9)]
    for right in range(9):
        guess = [*truth[:right], *((token + 1) % 7 for token in truth[right:8])]
        chance = generator(5)
        assert accept(logits_LV, Draft(tuple(guess)), options, chance) == truth[: right + 1]
        following = int(pick(logits_LV[right + 1 :][:1], options, chance)) if right < 8 else None
        assert following is None or following == truth[right + 1]  # no more chance was used than tokens given


def test_lookup_takes_the_longest_match_then_the_latest():
    drafts = NgramDrafts(cost=0)
    assert drafts.propose([1, 2, 3], 5) == Draft()
    assert drafts.propose([5], 5) == Draft()
    assert drafts.propose([1, 2, 9, 1, 2, 8, 7, 1, 2], 3).tokens == (8, 7, 1)
    assert drafts.propose([6, 1, 2, 9, 1, 2, 8, 6, 1, 2], 2) == Draft((9, 1), kind=3)
    assert drafts.propose([4] * 9, 3).tokens == (4,)  # the latest match ends one token before the end
    drafts.keep([70_000, 0xD800, 3, 200_000])  # any number is a letter
    drafts.keep([6, 1, 2, 5, 5])
    assert drafts.propose([1, 0xD800, 3], 3).tokens == (200_000, 6, 1)
    assert drafts.propose([6, 1, 2, 9, 6, 1, 2], 2).tokens == (9, 6)  # as long a match of its own comes first
    assert drafts.propose([0, 6, 1, 2], 2).tokens == (5, 5)
    lonely = NgramDrafts(recent=0)
    lonely.keep([1, 2, 3])
    assert lonely.propose([1, 2], 2) == Draft()
    short = NgramDrafts(recent=4)
    short.keep([1, 2, 3, 4, 5])
    assert len(short._past) == 4


def test_as_many_are_drafted_as_pay():
    assert [Paced(0.1).paying() for _ in range(3)] == [2] * 3
    pace = Paced(0.1)
    for _ in range(30):
        pace.saw(Draft((1, 2), kind=5), 2)
    assert pace.paying(5) == MOST and pace.paying(4) == 2
    for _ in range(60):
        pace.saw(Draft((1, 2), kind=5), 0)
    assert sorted(pace.paying(5) for _ in range(32)) == [0] * 30 + [1] * 2


@pytest.mark.parametrize("states", [False, True])
def test_a_small_model_drafts_what_it_would_write(states):
    model = Chain.random(6, context_length=40, sharpness=2)
    model.states = states
    drafts = ModelDrafts(model, cost=0)
    chance = random.Random(0)
    texts = [[1, 2, 3, 4, 5, 0, 1, 2, 3] * 2, [1, 2, 3, 4, 5, 0, 1, 2, 4]]
    for _ in range(40):
        text = chance.choice(texts)
        draft = drafts.propose(text, 4)
        assert draft.probabilities_KV is None and 1 <= len(draft.tokens) <= 4
        options = SamplingOptions(temperature=0, max_tokens=len(draft.tokens))
        assert [token for _, token, _ in write(Chain(model.table, 64), [text], options)] == list(draft.tokens)
        drafts.saw(draft, right := chance.randint(0, len(draft.tokens)))
        text += [*draft.tokens[:right], chance.randrange(6)]
        del text[25:]
        drafts.keep(text)
    assert drafts.propose([1] * 41, 4) == Draft() != drafts.propose([1] * 40, 4)
    assert len(drafts.propose([1] * 40, 4).tokens) == 1


@pytest.mark.parametrize("states", [False, True])
def test_a_small_model_reads_hardly_more_than_it_must(states):
    model = Chain.random(6, context_length=400, sharpness=2)
    model.states = states
    drafts = ModelDrafts(model, cost=0)
    one, other = [1, 2, 3] * 60, [1, 2, 3] * 59 + [4, 4, 4]
    drafts.propose(one, 3), drafts.propose(other, 3)
    model.calls.clear()
    for token in range(20):
        for text in (one, other):
            text.append(token % 6)
            drafts.propose(text, 3)
    assert sum(length for _, length in model.calls) <= 2 * 20 * 4


def test_drawn_drafts_in_the_engine_give_the_models_distribution():
    noise = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    model, small = Chain((1.5 * noise[0]).softmax(-1), 64), Chain((1.5 * noise[0] + noise[1]).softmax(-1), 64)
    counts_VVV = torch.zeros(4, 4, 4)
    with Engine(model, slots=2, draft=ModelDrafts(small, sampled=True, cost=0.1)) as engine:
        heard = [Heard() for _ in range(60)]
        for number, ear in enumerate(heard):
            engine.submit(Ask((0, 1), SamplingOptions(seed=number, max_tokens=62)), ear)
        for ear in heard:
            text = [0, 1, *ear.wait().tokens[0]]
            for a, b, c in zip(text, text[1:], text[2:], strict=False):
                counts_VVV[a, b, c] += 1
        stats = engine.stats()
    expected_VVV = counts_VVV.sum(2, keepdim=True) * model.table[:4]
    assert float(((counts_VVV - expected_VVV) ** 2 / expected_VVV).sum()) < 48 + 5 * math.sqrt(96)
    assert 0.3 < stats.drafts_accepted / stats.drafts_proposed < 0.98
    assert stats.steps < 0.8 * stats.tokens_out


@pytest.mark.parametrize("kind", MIXERS)
def test_a_real_small_model_is_kept_in_step(kind):
    small = Checked(tiny(kind, seed=1))
    drafts = ModelDrafts(small)
    drafts.paying = lambda: 3
    with Engine(tiny(kind), slots=2, chunk=16, draft=drafts) as engine:
        heard = [Heard() for _ in range(4)]
        for number, ear in enumerate(heard):
            prompt = [*range(1, 20), number]
            engine.submit(Ask(tuple(prompt), SamplingOptions(0.5, max_tokens=20, seed=number)), ear)
        for ear in heard:
            assert ear.wait().finish == {0: "length"}
    assert small.worst < 1e-4 and len(small.calls) > 100
    assert sum(length > 8 for _, length in small.calls) == (1 if kind == "attention" else 4)


def test_drafts_are_for_few_rows_without_constraint():
    asked = []

    class Counted(NgramDrafts):
        def propose(self, tokens, k, options=GREEDY, chance=None):
            asked.append(k)
            return super().propose(tokens, k, options, chance)

    with Engine(Chain.random(5, context_length=200), slots=4, draft=Counted()) as engine:
        heard = Heard(3)
        engine.submit(Ask((1,), SamplingOptions(max_tokens=100), n=3), heard)
        heard.wait()
        assert not asked
        heard = Heard(1)
        engine.submit(Ask((1,), SamplingOptions(max_tokens=10)), heard)
        heard.wait()
        assert asked and max(asked) == 9


def test_an_error_of_the_drafts_ends_one_row():
    class Wrong(NgramDrafts):
        def propose(self, tokens, k, options=GREEDY, chance=None):
            if tokens[0] == 3:
                raise ValueError("no guess")
            return super().propose(tokens, k, options, chance)

    with Engine(Chain.random(5, context_length=200), slots=2, draft=Wrong()) as engine:
        heard = [Heard(), Heard()]
        for first, ear in zip((3, 1), heard, strict=True):
            engine.submit(Ask((first,), SamplingOptions(max_tokens=50)), ear)
        assert heard[0].wait().finish == {0: "error"} and heard[0].errors[0] == "ValueError: no guess"
        assert heard[1].wait().finish == {0: "length"}
        assert engine.stats().slots_free == 2
