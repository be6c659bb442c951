"""Judges: models that say which of two answers is better, by a letter, by a word, or by a score for each answer.

    a language model      -> log P("A") - log P("B") after the question, less its mean over all that was asked
    whoever answers       -> one letter, read from the text of the answer
    a reward model        -> score(prompt, first) - score(prompt, second)
    any language model    -> bits a token of the answers: the likelier one is better

The mean is taken away because a small model likes a letter for itself, whatever the answers: without it, it would give
ties only (calibration: Zhao et al. 2021, arXiv:2102.09690, here by all questions instead of an empty one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError
from nomoat.core.teacher import Answers
from nomoat.core.types import Decodes, Scores
from nomoat.data.chat import Chat, Marked
from nomoat.evaluate.bits import token_bits
from nomoat.evaluate.judging import Numbers, Pair
from nomoat.sampling.write import CHUNK, device_of

CHARACTERS = 2_000
"""Of each answer, from its beginning, that a judge is shown."""
LEAST_CHARACTERS = 100
LEAST_MASS = 0.01
"""Where A and B together are less probable, the judge has not answered."""
AT_ONCE = 8
WORDS = 16

QUESTION = """Below are a request and two answers to it. Decide which answer helps the person more: right, complete, \
to the point.

Request:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with one letter, A or B."""


def question(pair: Pair, characters: int = CHARACTERS) -> list[dict[str, str]]:
    """What a judge is asked, as a conversation."""
    shown = {"prompt": pair.prompt, "first": pair.first[:characters], "second": pair.second[:characters]}
    return [{"role": "user", "content": QUESTION.format(**shown)}]


def letter(text: str) -> float:
    """1 where an answer says A, -1 where it says B, NaN where it says neither or both."""
    if begun := re.match(r"\W*(?:answer\W+)?([AB])(?![\w'’])(?!\s+(?:and|or|nor)\b)", text, re.IGNORECASE):
        return 1.0 if begun[1].upper() == "A" else -1.0
    found = {*re.findall(r"\b([AB])\b", text)}
    return {frozenset("A"): 1.0, frozenset("B"): -1.0}.get(frozenset(found), float("nan"))


class Spoken:
    """Whoever answers conversations, asked for a letter.

    Args:
        answerer: asked several times at once.
    """

    def __init__(self, answerer: Answers) -> None:
        self.name, self._answerer = answerer.name, answerer

    def votes(self, pairs: Sequence[Pair]) -> Numbers:
        """See `Judge`. Raises NomoatError where the answerer does not answer."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return np.array([*pool.map(self._vote, pairs)], dtype=np.float64)

    def _vote(self, pair: Pair) -> float:
        return letter(self._answerer.answer(question(pair), max_tokens=WORDS, temperature=0.0, seed=0).text)


class Letters:
    """A language model, by the log-probabilities of the two letters.

    Args:
        name: for reports.
        model: read in eval mode.
        tokenizer, chat: the model's.
    """

    def __init__(self, name: str, model: Decodes, tokenizer: Marked, chat: Chat) -> None:
        self.name, self._model, self._tokenizer, self._chat = name, model, tokenizer, chat
        self._letters = [
            sorted({int(tokenizer.encode(form)[0]) for form in (word, f" {word}") if len(tokenizer.encode(form)) == 1})
            for word in "AB"
        ]
        if not all(self._letters):
            raise ConfigError(f"{name} cannot judge by letters", "its tokenizer has no token that is A or B alone")

    def votes(self, pairs: Sequence[Pair]) -> Numbers:
        """See `Judge`."""
        logit_N = np.array([self._logit(pair) for pair in pairs], dtype=np.float64)
        return logit_N - np.nanmean(logit_N) if not np.isnan(logit_N).all() else logit_N

    @torch.no_grad()
    def _logit(self, pair: Pair) -> float:
        ids, memory = self._fitting(pair), None
        memory = self._model.memory(1, len(ids))
        for start in range(0, len(ids), CHUNK):
            tokens_1L = torch.tensor([ids[start : start + CHUNK]], device=device_of(self._model))
            last_V = self._model.decode(tokens_1L, memory, [0])[0, -1].double()
        logp_V = last_V.log_softmax(0)
        first, second = (float(logp_V[letters].logsumexp(0)) for letters in self._letters)
        return first - second if np.exp(first) + np.exp(second) >= LEAST_MASS else float("nan")

    def _fitting(self, pair: Pair) -> list[int]:
        """The question's tokens; both answers are cut alike until it fits the context."""
        characters, reach = CHARACTERS, int(self._model.config.context_length)  # type: ignore[attr-defined]
        while True:
            ids = self._chat.tokens(question(pair, characters), self._tokenizer)[0]
            if len(ids) < reach:
                return ids
            if (characters := characters // 2) < LEAST_CHARACTERS:
                why = f"the question has {len(ids):,} tokens, {self.name} looks back on {reach:,}"
                raise ConfigError("a prompt is too long for its judge", why, "shorten it, or take another judge")


class Scored:
    """Compares the scores that answers have each for itself; each is asked for once.

    Args:
        name: for reports.
        score: of conversations that end with the assistant's answer.
    """

    def __init__(self, name: str, score: Callable[[list[list[dict[str, str]]]], Sequence[float]]) -> None:
        self.name, self._score = name, score

    def votes(self, pairs: Sequence[Pair]) -> Numbers:
        """See `Judge`."""
        said = [(pair.prompt, answer) for pair in pairs for answer in (pair.first, pair.second)]
        place = {each: number for number, each in enumerate(dict.fromkeys(said))}
        talks = [[_said("user", prompt), _said("assistant", answer)] for prompt, answer in place]
        score_M = np.asarray(self._score(talks), dtype=np.float64)
        at_N2 = np.array([place[each] for each in said]).reshape(-1, 2)
        return score_M[at_N2[:, 0]] - score_M[at_N2[:, 1]]


def likelihood(name: str, model: Scores, tokenizer: Marked, chat: Chat) -> Scored:
    """A judge that finds the answer better of which a token costs the model fewer bits after the prompt."""

    def score(talks: list[list[dict[str, str]]]) -> list[float]:
        read = [chat.tokens(talk, tokenizer, answer=False) for talk in talks]
        found = token_bits(model, [np.array(ids) for ids, _ in read])
        learned = [np.array(learn[1:], dtype=bool) for _, learn in read]
        return [-float(bits[of].mean()) if of.any() else -np.inf for bits, of in zip(found, learned, strict=True)]

    return Scored(name, score)


def reward(name: str, model: Scores, tokenizer: Marked, chat: Chat) -> Scored:
    """A judge that finds the answer better to which a reward model gives more; of what is too long its end is read."""

    def score(talks: list[list[dict[str, str]]]) -> list[float]:
        return [float(_one(model, chat.tokens(talk, tokenizer, answer=False)[0]).item()) for talk in talks]

    return Scored(name, score)


def is_reward(model: Scores) -> bool:
    """Whether a model scores whole texts: [B, 1], whatever the length."""
    return hasattr(model, "score") and _one(model, [0, 1, 0, 1]).size == 1


@torch.no_grad()
def _one(model: Scores, ids: Sequence[int]) -> NDArray[Any]:
    """What the model scores one text."""
    reach = int(model.config.context_length)  # type: ignore[attr-defined]
    tokens_1L = torch.tensor([[*ids[-reach:]]], device=device_of(model))
    return model.score({"tokens": tokens_1L, "mask": torch.ones_like(tokens_1L, dtype=torch.bool)}).cpu().numpy()


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
