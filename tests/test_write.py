"""Writing text: same seed same text, ends where it must, slides beyond the context, streams whole characters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markov import Markov

from nomoat.core.errors import ConfigError
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, train_bpe
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.sampling import write as writing
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import Outlet, continue_text, continue_tokens, write


class Script:
    """A model that has learned one sequence by heart: after n tokens it writes the n-th, whatever came before."""

    def __init__(self, script, vocab_size, context_length=1000):
        self.script = list(script)
        self.inner = Markov.random(1, context_length)
        self.config = type(self.inner.config)(context_length, vocab_size)

    def memory(self, slots, length):
        return self.inner.memory(slots, length)

    def decode(self, tokens_BL, memory, slots, last=False):
        logits = torch.full((*tokens_BL.shape, self.config.vocab_size), -math.inf)
        for row, slot in enumerate(slots):
            for column, token in enumerate(tokens_BL[row].tolist()):
                memory.rows[slot].append(token)
                logits[row, column, self.script[len(memory.rows[slot]) - 1]] = 0
        return logits[:, -1:] if last else logits


def rows_of(written, count):
    rows = [[] for _ in range(count)]
    for row, token, _ in written:
        rows[row].append(token)
    return rows


def test_frequencies_of_pairs_are_the_chains():
    model = Markov.random(3, context_length=10_000, seed=1)
    (tokens,) = rows_of(write(model, [[0, 1]], SamplingOptions(max_tokens=6000)), 1)
    tokens = [0, 1, *tokens]
    counts = torch.zeros(3, 3, 3).double()
    for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
        counts[a, b, c] += 1
    expected = counts.sum(2, keepdim=True) * model.table[:3].double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 18 + 5 * math.sqrt(2 * 18)


def test_same_seed_same_text_and_a_row_does_not_depend_on_its_neighbours():
    prompts = [[0], [1, 2, 3], [4] * 9, [2, 2]]
    options = SamplingOptions(max_tokens=12, seed=5)
    first, second = (rows_of(write(Markov.random(6), prompts, options), 4) for _ in range(2))
    assert first == second
    assert rows_of(write(Markov.random(6), prompts[:1], options), 1)[0] == first[0]
    other = rows_of(write(Markov.random(6), prompts, SamplingOptions(max_tokens=12, seed=6)), 4)
    assert other != first
    twins = rows_of(write(Markov.random(6), [[1, 2], [1, 2]], options), 2)
    assert twins[0] != twins[1]


def test_the_log_probability_is_the_models_own():
    model = Markov.random(5, context_length=100)
    text = [3, 1]
    for _, token, logprob in write(model, [text], SamplingOptions(0.5, 3, max_tokens=20)):
        assert logprob == pytest.approx(math.log(model.table[text[-2], text[-1], token]), abs=1e-5)
        text = [*text, token]


def test_a_row_ends_at_its_stop_token_and_the_others_go_on():
    tokens = rows_of(write(Markov.random(4, seed=2), [[0], [1], [2], [3]], SamplingOptions(max_tokens=30), (3,)), 4)
    assert any(len(row) < 30 for row in tokens)
    for row in tokens:
        assert 3 not in row[:-1]
        assert row[-1] == 3 or len(row) == 30


def test_until_ends_a_row():
    tokens = rows_of(
        write(Markov.random(4), [[0], [1]], SamplingOptions(max_tokens=30), until=lambda row, token: row == 1), 2
    )
    assert [len(row) for row in tokens] == [30, 1]


def test_long_prompts_are_read_in_chunks_and_short_ones_beside_them(monkeypatch):
    monkeypatch.setattr(writing, "CHUNK", 4)
    model = Markov.random(5, context_length=64)
    prompts = [[1] * 10, [2] * 3, [3, 4, 0, 1]]
    greedy = SamplingOptions(temperature=0, max_tokens=3)
    together = rows_of(write(model, prompts, greedy), 3)
    assert max(length for _, length in model.calls) == 4
    for prompt, row in zip(prompts, together, strict=True):
        assert rows_of(write(Markov.random(5, context_length=64), [prompt], greedy), 1)[0] == row


def test_beyond_the_context_the_window_slides_by_half():
    model = Markov.random(5, context_length=8)
    (tokens,) = rows_of(write(model, [[1, 2, 3]], SamplingOptions(max_tokens=50)), 1)
    assert len(tokens) == 50
    refeeds = [length for _, length in model.calls if length > 1]
    assert refeeds[0] == 3 and set(refeeds[1:]) == {4}
    held = model.memories[0].rows[0]
    assert held == [1, 2, 3, *tokens][-1 - len(held) : -1]


def test_of_a_prompt_beyond_the_context_the_end_is_read():
    model = Markov.random(5, context_length=8)
    next(iter(write(model, [[0, 1, 2, 3, 4] * 4], SamplingOptions())))
    assert model.memories[0].rows[0] == [2, 3, 4, 0, 1, 2, 3, 4]


def test_the_memory_is_as_small_as_the_task_allows():
    model = Markov.random(5, context_length=1000)
    list(write(model, [[0, 1]], SamplingOptions(max_tokens=5)))
    assert model.memories[0].length == 7


def test_grad_mode_does_not_leak():
    stream = write(Markov.random(3), [[0]], SamplingOptions(max_tokens=3))
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_nothing_asked_nothing_done_and_empty_prompts_refused():
    assert list(write(Markov.random(3), [])) == []
    assert list(write(Markov.random(3), [[0]], SamplingOptions(max_tokens=0))) == []
    with pytest.raises(ConfigError):
        next(iter(write(Markov.random(3), [[0], []])))


@pytest.mark.parametrize("mixers", ["attention", "mamba", ("attention", "mamba")])
def test_a_real_model_writes_what_it_would_write_without_a_memory(mixers):
    torch.manual_seed(0)
    model = LM(17, 12, Backbone(width=32, depth=2, heads=2, mixers=mixers)).build({}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    prompts = [[1, 2, 3], [4] * 20, [5]]
    rows = [[], [], []]
    for row, token, logprob in write(model, prompts, SamplingOptions(max_tokens=30, seed=3)):
        rows[row].append((token, logprob))
    for prompt, row in zip(prompts, rows, strict=True):
        window = prompt[-12:]
        for token, logprob in row:
            if len(window) > 12:
                window = window[-6:]
            tokens_BL = torch.tensor([[*window, token]])
            logp_BL = model.score({"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)})
            assert logprob == pytest.approx(logp_BL[0, -1].item(), abs=2e-4)
            window = [*window, token]


def scripted(text, tokenizer: Tokenizer, end=True):
    ids = [int(token) for token in tokenizer.encode(text)]
    return Script([*ids, tokenizer.eot] if end else ids, tokenizer.vocab_size)


TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer("Rner dalyég! 你好\n123"),
    "bpe": train_bpe(["René ran really early 你好 123 123\n"] * 50, 300),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_text_is_the_scripts(kind):
    tokenizer = TOKENIZERS[kind]
    text = "René ran 你好\n123!" if kind != "char" else "René and 你好\n123!"
    model = scripted("n" + text, tokenizer)
    pieces = list(continue_text(model, tokenizer, "n", SamplingOptions(max_tokens=100)))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert all(pieces)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stop_string_ends_the_text_and_none_of_it_is_shown(kind):
    tokenizer = TOKENIZERS[kind]
    model = scripted("René ran 你好 early" if kind != "char" else "René and 你好 ready", tokenizer)
    seen = ""
    for piece in continue_text(model, tokenizer, "", SamplingOptions(max_tokens=50, stop=("你好 rX", "n", "é"))):
        seen += piece
    assert seen == "Re"
    (done,) = continue_tokens(model, tokenizer, [[tokenizer.eot]], SamplingOptions(max_tokens=50, stop=("好",)))
    assert done.reason == "stop" and done.text.endswith(" 你")


def test_the_reason_of_the_end():
    tokenizer = ByteTokenizer()
    model = scripted("abc", tokenizer)
    (done,) = continue_tokens(model, tokenizer, [[tokenizer.eot]], SamplingOptions(max_tokens=50))
    assert (done.text, done.reason, done.tokens) == ("abc", "end", (97, 98, 99, tokenizer.eot))
    (done,) = continue_tokens(model, tokenizer, [[tokenizer.eot]], SamplingOptions(max_tokens=2))
    assert (done.text, done.reason) == ("ab", "length")
    assert done.logprob == pytest.approx(0)


def test_an_unfinished_character_is_held_back():
    tokenizer = ByteTokenizer()
    model = scripted("aé你", tokenizer, end=False)
    model.script[-1] = tokenizer.eot  # the last byte of the last character never comes
    pieces = list(continue_text(model, tokenizer, "", SamplingOptions(max_tokens=50)))
    assert pieces == ["a", "é", "\ufffd"]


def first_complete_stop(text, stops):
    """The definition: read character by character, end where a stop string is complete, give what is before it."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))]
    return text


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab\u00e9\U0001f469", max_size=14),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_stops_do_not_depend_on_the_borders_of_tokens(text, stops, cuts):
    outlet, data, shown, index = Outlet(stops), text.encode(), "", 0
    expected = first_complete_stop(text, stops)
    while data:
        size = cuts[index % len(cuts)]
        shown += outlet.push(data[:size])
        data, index = data[size:], index + 1
        assert expected.startswith(shown)
    shown += outlet.finish()
    assert shown == expected
    assert outlet.stopped == any(stop in text for stop in stops)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.integers(1, 4))
def test_streaming_equals_decoding_at_once(data, size):
    outlet = Outlet()
    pieces = [outlet.push(data[start : start + size]) for start in range(0, len(data), size)]
    assert "".join([*pieces, outlet.finish()]) == data.decode("utf-8", errors="replace")
