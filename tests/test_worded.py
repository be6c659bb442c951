"""Countdown as a language model plays it: priors of lines, legality, samples, pass@k."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nomoat.families.lm import LM
from nomoat.families.masked import Masked
from nomoat.games.countdown import Countdown
from nomoat.games.countdown_problems import exam
from nomoat.games.countdown_text import Notation, verify
from nomoat.nn.backbone import Backbone
from nomoat.search.planning import plan
from nomoat.search.selection import Gumbel
from nomoat.search.tree import Trees
from nomoat.search.worded import Lines, Worded, pass_at, solve, solved

GAME = Countdown(4)
NOTATION = Notation(GAME)
PROBLEMS = exam(GAME, "numbers")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    width = Backbone(width=32, depth=2, heads=2)
    made = LM(NOTATION.vocab_size, context_length=NOTATION.length - 1, backbone=width).build({}).eval()
    torch.nn.init.normal_(made.embed.weight, std=0.5)
    return made


@pytest.mark.parametrize("mixers", ["attention", "mamba"])
def test_the_prior_of_a_line_is_what_the_model_says_of_its_tokens(mixers: str) -> None:
    torch.manual_seed(1)
    width = Backbone(width=32, depth=2, heads=2, mixers=mixers)
    model = LM(NOTATION.vocab_size, context_length=NOTATION.length - 1, backbone=width).build({}).eval()
    torch.nn.init.normal_(model.embed.weight, std=0.5)
    worded = Worded(GAME)
    state = worded.start(PROBLEMS[:3])
    for _ in range(2):
        logits = Lines(model, NOTATION)(state).logits_BA
        for row in range(len(state)):
            made = int(state["made"][row])
            ids = Lines(model, NOTATION).written(state[row : row + 1], made)
            legal = np.flatnonzero(worded.legal(state[row : row + 1])[0])
            for action in legal[:: max(1, len(legal) // 5)]:
                whole = NOTATION.spell(
                    state["begin"][row : row + 1], np.array([[*state["action"][row, :made], action]])
                )
                tokens = torch.from_numpy(whole[:, : ids.shape[1] + 3])
                with torch.inference_mode():
                    logp = model.decode(tokens, model.memory(1, tokens.shape[1]), [0]).log_softmax(2)[0]
                said = sum(logp[ids.shape[1] + k - 1, tokens[0, ids.shape[1] + k]] for k in range(3))
                assert logits[row, action] == pytest.approx(float(said), abs=2e-3)
            assert (logits[row, ~worded.legal(state[row : row + 1])[0]] < -1e8).all()
        state = worded.step(state, worded.legal(state).argmax(1))


@pytest.mark.parametrize("family", ["one after the other", "masked"])
def test_with_legality_on_all_lines_are_legal_and_off_few_are(model, family: str) -> None:
    if family == "masked":
        torch.manual_seed(0)
        both_ways = Backbone(width=32, depth=2, heads=2, causal=False)
        model = Masked(NOTATION.vocab_size, NOTATION.length - 1, both_ways).build({}).eval()
    on = np.concatenate([ids for _, ids in solve(model, NOTATION, PROBLEMS[:8], 4, seed=0)])
    assert (NOTATION.read(on).fault_B == 0).all()
    assert len(np.unique(on, axis=0)) > 15
    off = np.concatenate([ids for _, ids in solve(model, NOTATION, PROBLEMS[:8], 4, seed=0, legal=False)])
    assert (NOTATION.read(off).fault_B > 0).mean() > 0.9
    again = np.concatenate([ids for _, ids in solve(model, NOTATION, PROBLEMS[:8], 4, seed=0)])
    assert (on == again).all()


def test_rows_are_what_the_model_would_write_token_by_token(model) -> None:
    ids, _ = NOTATION.blank(PROBLEMS[:6])
    ids = ids[:, : NOTATION.prompt_length]
    for place in range(NOTATION.prompt_length, NOTATION.length):
        with torch.inference_mode():
            logits = model.decode(torch.from_numpy(ids), model.memory(6, place), range(6))[:, -1].numpy()
        likeliest = np.where(NOTATION.allowed(ids)[:, place], logits, -np.inf).argmax(1)
        ids = np.concatenate((ids, likeliest[:, None]), 1)
    ((_, written),) = solve(model, NOTATION, PROBLEMS[:6], 1, seed=0, temperature=0)
    np.testing.assert_array_equal(written, ids)


def test_what_is_solved_is_what_the_text_alone_shows(model) -> None:
    easy = np.repeat(PROBLEMS[:1], 300)
    found = solved(model, NOTATION, easy, 1, 0)[:, 0]
    rows = np.concatenate([ids for _, ids in solve(model, NOTATION, easy, 1, 0)])
    shown = [NOTATION.show(row).partition("|") for row in rows]
    assert [bool(verify(problem, [text])[0].right) for problem, _, text in shown] == found.tolist()


def test_a_search_with_the_model_finds_solutions_and_knows_them(model) -> None:
    worded = Worded(GAME)
    state = worded.start(PROBLEMS[:6])
    planned = plan(Trees(worded, state, Lines(model, NOTATION)), Gumbel(scale=0.1), 160)
    won = planned.known_B == 1
    assert won.any()
    at = worded.step(state[won], planned.action_B[won])
    for row in at:
        left = [row[None]]
        for _ in range(2):
            left = [worded.step(s, np.array([a])) for s in left for a in np.flatnonzero(worded.legal(s)[0])]
        assert any(worded.outcome(s).value_B[0] == 1 for s in left)


def test_worded_states_differ_by_their_lines_where_what_is_left_is_the_same() -> None:
    worded, game = Worded(Countdown(3)), Countdown(3)
    state = worded.start(np.repeat(game.start([[5, 5, 2]], [10]), 2))
    legal = np.flatnonzero(game.legal(state["now"][:1])[0])
    after = worded.step(state, legal[:2])
    assert worded.key(after)[0] != worded.key(after)[1]


def test_pass_at_k_is_the_chance_that_one_of_k_is_right() -> None:
    right = np.zeros((3, 5), bool)
    right[1, :2] = right[2] = True
    np.testing.assert_allclose(pass_at(right, 1), [0, 0.4, 1])
    np.testing.assert_allclose(pass_at(right, 2), [0, 1 - 3 / 10, 1])
    np.testing.assert_allclose(pass_at(right, 5), [0, 1, 1])
