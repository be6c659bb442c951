"""Thinking in texts: what each strategy keeps, what it counts, when it stops; writers that are made to think."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from nomoat.core.domain import Verdict
from nomoat.core.errors import ConfigError
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.sampling.tokens import SamplingOptions
from nomoat.search.planning import Effort
from nomoat.search.text_tree import searched
from nomoat.search.thoughts import Piece, Question, beam, best_of, dvts, particles, think, tree_of_thoughts, voted
from nomoat.search.writers import Forcing, ModelWriter

LENGTH = 6


class Letters:
    """Writes words of six letters, a or b: a step is a letter."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, prompts, texts, whole, seed) -> list[Piece]:
        self.calls.append(len(texts))
        chance, pieces = np.random.default_rng((seed, len(self.calls))), []
        for prompt, text in zip(prompts, texts, strict=True):
            left = LENGTH - len(text) if whole else 1
            new = "".join(
                chance.choice(["a", "b"], left, p=(0.3, 0.7)) if prompt == "rare" else chance.choice(["a", "b"], left)
            )
            pieces.append(Piece(new, left, -0.7 * left, len(text) + left == LENGTH))
        return pieces


def share(prompts, texts) -> np.ndarray:
    return np.array([text.count("a") / len(text) for text in texts])


def all_a(problem, candidates) -> list[Verdict]:
    return [Verdict(float(text == "a" * LENGTH)) for text in candidates]


def solved(strategy) -> float:
    found = think([Question("x")] * 30, Letters(), strategy, Effort(nodes=10**6), share, all_a)
    return float(np.mean([each.best is not None and each.best.right == 1 for each in found]))


def test_the_best_of_more_answers_is_right_more_often() -> None:
    few, many = solved(best_of(4)), solved(best_of(64))
    assert few < 0.4
    assert 0.4 < many < 0.95  # 1 - (63/64)^64 = 0.63


def test_steps_that_are_judged_find_what_whole_answers_do_not() -> None:
    assert solved(beam(2, 4)) > 0.9
    assert solved(dvts(4, 4)) > 0.9
    assert solved(particles(16, heat=0.02)) > solved(best_of(16))


def test_the_way_back_is_taken_when_what_is_at_hand_is_worse() -> None:
    """A trap: ba... looks best at first and leads nowhere."""

    class Two:
        def __call__(self, prompts, texts, whole, seed) -> list[Piece]:
            seen = Counter[str]()
            pieces = []
            for text in texts:
                letter = "ab"[seen[text] % 2]
                seen[text] += 1
                pieces.append(Piece(letter, 1, -0.7, len(text) == 2))
            return pieces

    def trap(prompts, texts) -> np.ndarray:
        looks = {"a": 0.6, "b": 0.9, "aa": 0.7, "ab": 0.2, "ba": 0.3, "bb": 0.3}
        return np.array([looks.get(text, 1.0 if text == "aaa" else 0.1) for text in texts])

    def right(problem, candidates) -> list[Verdict]:
        return [Verdict(float(text == "aaa")) for text in candidates]

    back = think([Question("x")], Two(), tree_of_thoughts(1, 2), Effort(nodes=20), trap, right)[0]
    forward = think([Question("x")], Two(), beam(1, 2), Effort(nodes=20), trap, right)[0]
    assert (back.best.text, back.best.right) == ("aaa", 1.0)
    assert forward.best.right == 0.0
    assert back.usage.nodes > forward.usage.nodes


def test_votes_go_to_what_most_agree_on_and_scores_weigh() -> None:
    class Three:
        def __call__(self, prompts, texts, whole, seed) -> list[Piece]:
            return [Piece(f"so: {'7' if row % 5 < 3 else '9'}", 3, -1.0, True) for row in range(len(texts))]

    def nine(prompts, texts) -> np.ndarray:
        return np.array([0.9 if text.endswith("9") else 0.1 for text in texts])

    def last(text: str) -> str:
        return text[-1]

    plain = think([Question("x")], Three(), voted(10), Effort(nodes=99), answer=last)[0]
    weighted = think([Question("x")], Three(), voted(10), Effort(nodes=99), nine, answer=last)[0]
    assert plain.best.text == "so: 7"
    assert weighted.best.text == "so: 9"
    assert len(plain.done) == 10


def test_all_problems_go_in_lock_step_and_what_they_take_is_counted() -> None:
    writer = Letters()
    found = think([Question("x")] * 3, writer, beam(2, 3), Effort(nodes=10**6), share, all_a)
    assert writer.calls == [3 * 2 * 3] * LENGTH
    for each in found:
        assert each.usage.nodes == each.usage.tokens == 6 * LENGTH
        assert each.usage.evaluations == each.usage.nodes + len(each.done)
    again = think([Question("x")] * 3, Letters(), beam(2, 3), Effort(nodes=10**6), share, all_a)
    assert [each.best.text for each in found] == [each.best.text for each in again]


@pytest.mark.parametrize("effort", [Effort(nodes=8), Effort(tokens=8), Effort(evaluations=8)])
def test_what_is_spent_up_is_not_gone_on_with(effort: Effort) -> None:
    found = think([Question("x")], Letters(), beam(2, 3), effort, share, all_a)[0]
    assert found.best is None
    assert found.usage.nodes == 12  # the turn in which it was spent up is the last
    assert think([Question("x")], Letters(), beam(2, 3), Effort(seconds=1e-9), share)[0].usage.nodes == 6


def test_groups_do_not_compete() -> None:
    found = think([Question("x")], Letters(), dvts(5, 2), Effort(nodes=10**6), share)[0]
    assert sorted(each.group for each in found.done) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_strategies_that_cannot_be() -> None:
    for wrong in (lambda: best_of(0), lambda: beam(0, 2), lambda: dvts(2, 0), lambda: particles(4, heat=0.0)):
        with pytest.raises(ConfigError, match="cannot be"):
            wrong()


class Bytes:
    """A tokenizer whose tokens are bytes; 0 ends a text."""

    eot, begin, stops, prefixes = 0, (0,), (0,), False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token else b""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    family = LM(256, context_length=256, backbone=Backbone(width=32, depth=1, heads=2)).build({}).eval()
    torch.nn.init.normal_(family.embed.weight, std=0.3)
    return family


def test_a_model_writes_steps_up_to_the_mark_and_answers_to_the_end(model) -> None:
    writer = ModelWriter(model, Bytes(), SamplingOptions(max_tokens=60), mark="e")
    steps = writer(["ab", "ab", "cd"], ["", "", ""], False, 3)
    assert steps == writer(["ab", "ab", "cd"], ["", "", ""], False, 3)
    assert steps != writer(["ab", "ab", "cd"], ["", "", ""], False, 4)
    assert steps[0].text != steps[1].text
    for piece in steps:
        assert piece.done != (piece.text.endswith("e") and piece.text.count("e") == 1)
    assert all(piece.done for piece in writer(["ab"], ["x"], True, 0))


def test_thinking_is_made_longer_and_cut(model) -> None:
    options = SamplingOptions(max_tokens=8, stop=("]",))  # where it would stop thinking
    writer = ModelWriter(model, Bytes(), options, forcing=Forcing(least=30, most=40, again="Wait, ", close="\nSo: "))
    piece = writer(["ab"], [""], True, 0)[0]
    thought, close, _ = piece.text.partition("\nSo: ")
    assert close
    assert thought.count("Wait, ") >= 1
    assert 30 <= piece.tokens <= 48  # at most 40 of thinking and 8 of the answer
    cut = ModelWriter(model, Bytes(), SamplingOptions(max_tokens=50), forcing=Forcing(most=5, close="\nSo: "))(
        ["ab"], [""], True, 0
    )[0]
    assert len(cut.text.partition("\nSo: ")[0]) <= 5
    with pytest.raises(ConfigError, match="min-think"):
        Forcing(least=9, most=4)


def test_a_tree_over_texts_finds_what_is_right_and_stops_when_it_has() -> None:
    found = searched([Question("x")] * 8, Letters(), Effort(nodes=400), share, all_a, seed=1)
    right = [each.best is not None and each.best.right == 1 for each in found]
    assert sum(right) >= 6
    assert all(each.usage.nodes <= 404 for each in found)
    # In a tree that knows an answer to be right nothing more is tried.
    assert min(each.usage.nodes for each in found) < 200
    plain = searched([Question("x")], Letters(), Effort(nodes=100))[0]
    assert plain.best is not None
    assert plain.best.right is None


def test_a_tree_over_few_texts_ends_when_all_are_tried() -> None:
    class Once:
        def __call__(self, prompts, texts, whole, seed) -> list[Piece]:
            return [Piece("a", 1, -0.1, len(text) == 2) for text in texts]

    def never(problem, candidates) -> list[Verdict]:
        return [Verdict(0.0) for _ in candidates]

    found = searched([Question("x")], Once(), Effort(nodes=10**6), None, never)[0]
    assert [each.text for each in found.done] == ["aaa"]
    assert found.best is not None
    assert found.best.right == 0
