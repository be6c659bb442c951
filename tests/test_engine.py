"""The engine: what it writes is what each text alone would be, whoever comes, leaves, fails or shares a beginning."""

from __future__ import annotations

import math
import random
import threading
import time

import pytest
import torch
from listening import MIXERS, Chain, Checked, Heard, hear, tiny

from nomoat.core.errors import ConfigError, RunError
from nomoat.sampling.speculate import ModelDrafts, NgramDrafts
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write
from nomoat.serve.ask import Ask, Event, Full
from nomoat.serve.engine import Engine

GREEDY = SamplingOptions(temperature=0, max_tokens=12)


def alone(model, prompt, options, n=1, stop_tokens=()):
    """What each of n rows would be without an engine."""
    rows = [[] for _ in range(n)]
    for row, token, logprob in write(model, [prompt] * n, options, stop_tokens):
        rows[row].append((token, logprob))
    return rows


def told(heard, choice):
    return [(event.token, event.logprob) for event in heard.events[choice] if event.token is not None]


def same(found, wanted):
    assert [token for token, _ in found] == [token for token, _ in wanted]
    assert [logprob for _, logprob in found] == pytest.approx([logprob for _, logprob in wanted], abs=1e-4)


def asks(seed, vocab_size, count, longest=40, **more):
    """Prompts of which many begin alike, with all kinds of options."""
    chance = random.Random(seed)
    stems = [[chance.randrange(vocab_size) for _ in range(longest)] for _ in range(3)]
    found = []
    for number in range(count):
        prompt = chance.choice(stems)[: chance.randint(1, longest)]
        prompt = prompt + [chance.randrange(vocab_size) for _ in range(chance.choice([0, 0, 1, 5]))]
        options = chance.choice(
            [
                SamplingOptions(temperature=0, max_tokens=chance.randint(1, 20)),
                SamplingOptions(seed=number, max_tokens=chance.randint(1, 20)),
                SamplingOptions(0.7, 5, 0.9, 0.01, max_tokens=9, seed=number),
            ]
        )
        found.append(Ask(tuple(prompt), options, n=chance.choice([1, 1, 1, 3]), **more))
    return found


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("draft", ["none", "ngram", "model"])
def test_every_text_is_what_it_would_be_alone(draft, states):
    model = Chain.random(6, context_length=64, sharpness=2.0)
    model.states = states
    small = Chain.random(6, context_length=64, sharpness=2.0)
    small.states = states
    drafts = {"none": None, "ngram": NgramDrafts(), "model": ModelDrafts(small)}[draft]
    requests = asks(1, 6, 60)
    with Engine(model, slots=4, chunk=8, draft=drafts) as engine:
        heard = [Heard(ask.n) for ask in requests]
        for start in range(0, 60, 6):
            for ask, ear in zip(requests[start : start + 6], heard[start : start + 6], strict=True):
                engine.submit(ask, ear)
            for ear in heard[start : start + 6]:
                ear.wait()
        stats = engine.stats()
    for ask, ear in zip(requests, heard, strict=True):
        room = 64 + 1 - len(ask.tokens)
        for choice, wanted in enumerate(alone(Chain(model.table, 128), ask.tokens, ask.options, ask.n)):
            same(told(ear, choice), wanted[:room])
            assert ear.finish[choice] == "length"
    assert stats.slots_free == 4 and stats.queued == stats.active == 0
    assert stats.tokens_out == sum(len(tokens) for ear in heard for tokens in ear.tokens.values())
    assert stats.prefix_tokens_reused > 100
    assert (stats.drafts_accepted > 0) == (draft != "none")


@pytest.mark.parametrize("drafts", [None, NgramDrafts()])
@pytest.mark.parametrize("kind", MIXERS)
def test_every_step_of_a_real_model_is_that_of_the_text_alone(kind, drafts):
    model = Checked(tiny(kind))
    requests = asks(2, 23, 24)
    with Engine(model, slots=4, chunk=16, draft=drafts) as engine:
        heard = [Heard(ask.n) for ask in requests]
        tickets = [engine.submit(ask, ear) for ask, ear in zip(requests, heard, strict=True)]
        tickets[5].cancel()
        for ear in heard:
            ear.wait()
        stats = engine.stats()
    assert model.worst < 1e-4
    assert stats.slots_free == 4 and stats.prefix_tokens_reused > 50
    assert {length for _, length in model.calls} > {1, 8} and max(rows for rows, _ in model.calls) == 4
    for ask, ear in zip(requests, heard, strict=True):
        if ask.options.temperature or ear.finish[0] == "cancelled":
            continue
        text = list(ask.tokens)
        for token in ear.tokens[0]:
            best, second = model.alone(tuple(text))[-1].topk(2)[0].tolist()
            assert token == int(model.alone(tuple(text))[-1].argmax()) or best - second < 1e-4
            text.append(token)


@pytest.mark.parametrize("kind", MIXERS)
def test_drafts_that_fail_leave_no_trace(kind):
    class Wild(NgramDrafts):
        """Right as far as the answer is known, then wrong."""

        def propose(self, tokens, k, options=GREEDY, chance=None):
            done = len(tokens) - 5
            guess = [*answer[done : done + done % 4], 7, 8][:k]
            return super().propose([1], k).__class__(tuple(guess))

    answer = told(hear_alone(tiny(kind), Ask((1, 2, 3, 4, 5), SamplingOptions(temperature=0, max_tokens=40))), 0)
    answer = [token for token, _ in answer]
    model = Checked(tiny(kind))
    with Engine(model, slots=2, draft=Wild()) as engine:
        heard = hear(engine, Ask((1, 2, 3, 4, 5), SamplingOptions(temperature=0, max_tokens=40)))
        stats = engine.stats()
    assert heard.tokens[0] == answer and model.worst < 1e-4
    assert stats.drafts_accepted > 10 and stats.drafts_proposed > stats.drafts_accepted


def hear_alone(model, ask):
    with Engine(model, slots=1) as engine:
        return hear(engine, ask)


@pytest.mark.parametrize(("kind", "share"), [("attention", 1 / 20), ("mamba", 1 / 5), ("hybrid", 1 / 5)])
@pytest.mark.parametrize("tail", [0, 1, 20])
def test_a_warm_beginning_is_hardly_read_again(kind, share, tail):
    chance = random.Random(0)
    model = Checked(tiny(kind, context_length=1200))
    model.alone = lambda text: torch.zeros(len(text), 23)
    prompt = [chance.randrange(23) for _ in range(1000)]
    ending = [chance.randrange(23) for _ in range(tail)]
    with Engine(model, slots=3) as engine:
        hear(engine, Ask(tuple(prompt), GREEDY))
        cold, model.fed = model.fed - 11, 0
        hear(engine, Ask((*prompt[: 1000 - tail], *ending), SamplingOptions(max_tokens=1)))
        assert cold == 1000 and model.fed <= max(1000 * share, tail + 1)
        model.fed = 0
        other = [chance.randrange(23) for _ in range(tail)]
        hear(engine, Ask((*prompt[: 1000 - tail], *other), SamplingOptions(max_tokens=1)))
        assert model.fed <= tail + 1  # where two texts parted a state was kept


def test_a_talk_goes_on_where_it_ended():
    model = Checked(tiny("hybrid"))
    with Engine(model, slots=2, chunk=16) as engine:
        text, fed = [1, 2, 3, 4, 5, 6, 7, 8, 9], 0
        for turn in range(4):
            model.fed = 0
            text += hear(engine, Ask(tuple(text), SamplingOptions(max_tokens=6, seed=turn))).tokens[0]
            fed = max(fed, model.fed if turn else 0)
            text += [turn] * 4
    assert fed == 4 + 1 + 5 and model.worst < 1e-4  # the question, the last token of the answer, and the new answer


def test_long_prompts_do_not_hold_up_the_others():
    model = Chain.random(5, context_length=4000)
    with Engine(model, slots=2, chunk=64) as engine:
        first = Heard()
        ticket = engine.submit(Ask((1,), SamplingOptions(max_tokens=3000)), first)
        assert first.begun.wait(10)
        model.calls.clear()
        hear(engine, Ask(tuple([1, 2] * 500), SamplingOptions(max_tokens=1)))
        ticket.cancel()
        first.wait()
    lengths = [length for _, length in model.calls]
    chunks = [at for at, length in enumerate(lengths) if length > 1]
    assert sum(lengths[at] for at in chunks) >= 990
    assert all(1 in lengths[at : at + 3] for at in chunks)  # two pieces, then a token of the other text


def test_n_reads_the_prompt_once():
    model = Chain.random(6, context_length=64)
    with Engine(model, slots=4) as engine:
        heard = hear(engine, Ask(tuple([1, 2, 3, 4] * 8), SamplingOptions(max_tokens=10, seed=3), n=4))
    assert [length for _, length in model.calls if length > 1] == [31]
    wanted = alone(Chain(model.table, 64), [1, 2, 3, 4] * 8, SamplingOptions(max_tokens=10, seed=3), 4)
    assert [heard.tokens[choice] for choice in range(4)] == [[token for token, _ in row] for row in wanted]
    assert len({tuple(tokens) for tokens in heard.tokens.values()}) > 1


def test_top_logprobs_and_those_of_the_prompt():
    model = Chain.random(6, context_length=64, seed=3)
    prompt = (3, 1, 2, 5, 5, 0, 1, 2, 3, 4)
    with Engine(model, slots=2, chunk=6) as engine:
        for _ in range(2):  # the second time the prompt is known, and is read all the same
            heard = hear(engine, Ask(prompt, GREEDY, top_logprobs=3, prompt_logprobs=True))
            assert [event.token for event in heard.prompt] == list(prompt[1:])
            table = torch.cat([model.table[6:, 3], model.table[prompt[:-2], prompt[1:-1]]]).log()
            for event, truth in zip(heard.prompt, table, strict=True):
                assert event.logprob == pytest.approx(float(truth[event.token]), abs=1e-5)
                assert [token for token, _ in event.top] == truth.topk(3).indices.tolist()
        assert [event.top[0] for event in heard.events[0]] == [
            (event.token, event.logprob) for event in heard.events[0]
        ]
        nothing = hear(engine, Ask(prompt, SamplingOptions(max_tokens=0), prompt_logprobs=True, n=2))
        assert len(nothing.prompt) == 9 and not nothing.tokens and nothing.finish == {0: "length", 1: "length"}
        mixed = [Heard(), Heard()]
        for ear, top in zip(mixed, (0, 2), strict=True):
            engine.submit(Ask((1, 2), GREEDY, top_logprobs=top), ear)
        assert {len(event.top) for event in mixed[0].wait().events[0]} == {0}
        assert {len(event.top) for event in mixed[1].wait().events[0]} == {2}


def test_stop_tokens_and_the_end_of_the_context():
    model = Chain.random(5, context_length=20)
    with Engine(model, slots=2) as engine:
        heard = hear(engine, Ask((1, 2), SamplingOptions(max_tokens=99, seed=1), (3,)))
        assert heard.finish == {0: "stop"} and heard.tokens[0].index(3) == len(heard.tokens[0]) - 1
        for draft in (None, NgramDrafts()):
            engine._draft = draft
            heard = hear(engine, Ask((1,) * 15, GREEDY))
            assert len(heard.tokens[0]) == 6 and heard.finish == {0: "length"}
        assert len(hear(engine, Ask((1,) * 20, GREEDY)).tokens[0]) == 1


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(()), "empty prompt"),
        (Ask((1,) * 21), "prompt of 21 tokens .* context of 20"),
        (Ask((1, 5)), "token 5 is not one of 0 to 4"),
        (Ask((-1,)), "token -1"),
        (Ask((1,), n=3), "n is 3. 1 to 2"),
        (Ask((1,), top_logprobs=6), "top_logprobs is 6"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_door(ask, words):
    with Engine(Chain.random(5, context_length=20), slots=2) as engine, pytest.raises(ConfigError, match=words):
        engine.submit(ask, Heard())


class Gate(Chain):
    """A chain that makes its steps when it is told to."""

    def __init__(self, table, context_length=4000):
        super().__init__(table, context_length)
        self.steps = threading.Semaphore(0)

    def decode(self, tokens_BL, memory, slots, last=False):
        assert self.steps.acquire(timeout=10)
        return super().decode(tokens_BL, memory, slots, last)


def test_a_cancelled_text_ends_within_one_step():
    model = Gate(Chain.random(5).table)
    with Engine(model, slots=2) as engine:
        heard, other = Heard(), Heard()
        ticket = engine.submit(Ask((1,), SamplingOptions(max_tokens=100), n=1), heard)
        model.steps.release(3)
        engine.submit(Ask((2,), SamplingOptions(max_tokens=9)), other)
        while len(heard.tokens[0]) < 3:
            time.sleep(0.001)
        ticket.cancel()
        model.steps.release()
        heard.wait()
        assert heard.finish == {0: "cancelled"} and len(heard.tokens[0]) <= 4
        assert engine.stats().cancelled == 1
        model.steps.release(50)
        assert other.wait().finish == {0: "length"}
        ticket.cancel()  # after the end: nothing


def test_the_queue_is_bounded_and_tells_when_to_come_back():
    model = Gate(Chain.random(5).table)
    with Engine(model, slots=1, queue=2) as engine:
        heard = [Heard() for _ in range(3)]
        engine.submit(Ask((1,), GREEDY), heard[0])
        while engine.stats().active == 0:
            time.sleep(0.001)
        tickets = [engine.submit(Ask((1,), GREEDY), ear) for ear in heard[1:]]
        with pytest.raises(Full, match="2 requests are waiting") as refused:
            engine.submit(Ask((1,), GREEDY), Heard())
        assert 0.1 <= refused.value.retry_after <= 10
        assert engine.stats().queued == 2
        tickets[0].cancel()
        model.steps.release(100)
        assert [ear.wait().finish[0] for ear in heard] == ["length", "cancelled", "length"]


def test_first_come_first_served():
    order, model = [], Chain.random(5, context_length=64)
    with Engine(model, slots=1) as engine:
        heard = []
        for number in range(6):
            ear = Heard()
            engine.submit(
                Ask((1,) * (number % 3 + 1), GREEDY),
                lambda event, number=number, ear=ear: (order.append(number), ear(event)),
            )
            heard.append(ear)
        for ear in heard:
            ear.wait()
    assert order == sorted(order)


def test_a_deadline_ends_a_text_wherever_it_is():
    model = Gate(Chain.random(5).table)
    with Engine(model, slots=1) as engine:
        written, waiting = Heard(), Heard()
        soon = time.monotonic() + 0.2
        engine.submit(Ask((1,), SamplingOptions(max_tokens=1000), deadline=soon), written)
        engine.submit(Ask((1,), SamplingOptions(max_tokens=1000), deadline=soon), waiting)
        model.steps.release(5)
        time.sleep(0.25)
        model.steps.release(1)
        assert written.wait().finish == waiting.wait().finish == {0: "deadline"}
        assert 5 <= len(written.tokens[0]) <= 6 and not waiting.tokens


class Only:
    """A constraint: these tokens, in this order."""

    def __init__(self, *tokens, vocab_size=5):
        self.tokens, self.at, self.vocab_size = tokens, 0, vocab_size

    @property
    def done(self):
        return self.at == len(self.tokens)

    def allowed(self):
        allowed_V = torch.zeros(self.vocab_size, dtype=torch.bool)
        if self.tokens[self.at] is None:
            return None
        if self.tokens[self.at] == "none":
            return allowed_V
        if self.tokens[self.at] == "error":
            raise ValueError("no such rule")
        allowed_V[self.tokens[self.at]] = True
        return allowed_V

    def advance(self, token):
        self.at += 1

    def fork(self):
        assert self.tokens[0] != "no fork"
        copy = Only(*self.tokens, vocab_size=self.vocab_size)
        copy.at = self.at
        return copy


def test_a_constraint_limits_one_row_and_its_errors_are_its_own():
    model = Chain.random(5, context_length=400, seed=2)
    with Engine(model, slots=8, draft=NgramDrafts()) as engine:
        free, long = Heard(), SamplingOptions(max_tokens=300, seed=4)
        engine.submit(Ask((1, 2), long), free)
        rule = Only(4, 0, [1, 2], 3, None, 4)
        heard = hear(engine, Ask((1, 2), SamplingOptions(max_tokens=50), constraint=rule, n=2))
        assert rule.at == 0 and heard.finish == {0: "stop", 1: "stop"}
        for choice in (0, 1):
            found = heard.tokens[choice]
            assert (found[0], found[1], found[3], found[5], len(found)) == (4, 0, 3, 4, 6) and found[2] in (1, 2)
        first = heard.events[0][0]
        assert first.logprob == pytest.approx(math.log(model.table[1, 2, 4]), abs=1e-5)  # of the model, not of the mask
        short = hear(engine, Ask((1, 2), GREEDY, constraint=Only(2, 3, vocab_size=4)))
        assert short.tokens[0] == [2, 3]
        for wrong, words in (("error", "ValueError: no such rule"), ("none", "forbids every token")):
            failed = hear(engine, Ask((1, 2), GREEDY, constraint=Only(1, wrong)))
            assert failed.finish == {0: "error"} and words in failed.errors[0] and failed.tokens[0] == [1]
        failed = hear(engine, Ask((1, 2), GREEDY, constraint=Only("no fork"), n=2))
        assert failed.finish == {0: "error", 1: "error"}
        assert free.wait(60).tokens[0] == [token for token, _ in alone(Chain(model.table, 400), [1, 2], long)[0]]
        assert engine.stats().slots_free == 8


def test_a_row_that_is_no_number_ends_alone():
    class Broken(Chain):
        def decode(self, tokens_BL, memory, slots, last=False):
            logits_BLV = super().decode(tokens_BL, memory, slots, last)
            asked_BL = tokens_BL[:, -1:] if last else tokens_BL
            return torch.where(asked_BL[..., None] == 0, math.nan, logits_BLV)

    model = Broken.random(5, context_length=400, seed=2)
    options = SamplingOptions(max_tokens=40, top_k=3, seed=7)
    with Engine(model, slots=4) as engine:
        heard = [Heard() for _ in range(4)]
        for number, ear in enumerate(heard):
            engine.submit(Ask((number,), options), ear)
        assert heard[0].wait().finish == {0: "error"} and "not numbers" in heard[0].errors[0]
        for number in (1, 2, 3):
            wanted = [token for token, _ in alone(Chain(model.table, 400), [number], options)[0]]
            wanted = wanted[: wanted.index(0) + 1] if 0 in wanted else wanted
            assert heard[number].wait().tokens[0] == wanted


def test_an_error_of_the_model_ends_all_and_the_engine_goes_on():
    class Fails(Chain):
        broken = 0

        def decode(self, tokens_BL, memory, slots, last=False):
            if self.broken:
                self.broken -= 1
                raise RuntimeError("out of memory")
            return super().decode(tokens_BL, memory, slots, last)

    model = Fails.random(5, context_length=4000)
    with Engine(model, slots=3) as engine:
        heard = [Heard(2), Heard()]
        for ear in heard:
            engine.submit(Ask((1,), SamplingOptions(max_tokens=3000), n=ear.n), ear)
            assert ear.begun.wait(10)
        model.broken = 1
        for ear in heard:
            assert set(ear.wait().finish.values()) == {"error"} and ear.errors[0] == "RuntimeError: out of memory"
        assert hear(engine, Ask((1, 2), GREEDY)).finish == {0: "length"}
        model.broken = 1
        assert hear(engine, Ask((1, 2, 3), GREEDY)).finish == {0: "error"}  # while its prompt is read
        assert hear(engine, Ask((1, 2), GREEDY)).finish == {0: "length"}
        assert engine.stats().slots_free == 3


def test_a_listener_that_fails_harms_nobody():
    def gone(event):
        raise ConnectionResetError

    with Engine(Chain.random(5, context_length=4000), slots=2) as engine:
        engine.submit(Ask((1,), SamplingOptions(max_tokens=3000)), gone)
        assert hear(engine, Ask((1,), GREEDY)).finish == {0: "length"}
        while engine.stats().active:
            time.sleep(0.001)
        assert engine.stats().tokens_out < 100


def test_closing_lets_texts_end_or_cancels_them():
    engine = Engine(Chain.random(5, context_length=64), slots=1)
    heard = [Heard() for _ in range(3)]
    for ear in heard:
        engine.submit(Ask((1,), GREEDY), ear)
    engine.close(drain_seconds=30)
    assert [ear.finish for ear in heard] == [{0: "length"}] * 3
    with pytest.raises(RunError):
        engine.submit(Ask((1,), GREEDY), Heard())
    engine.close()

    model = Gate(Chain.random(5).table)
    engine = Engine(model, slots=1)
    heard = [Heard(), Heard()]
    for ear in heard:
        engine.submit(Ask((1,), SamplingOptions(max_tokens=1000)), ear)
    model.steps.release(2)
    assert heard[0].begun.wait(10)
    threading.Timer(0.1, model.steps.release, (9,)).start()
    engine.close(drain_seconds=0.05)
    assert [ear.finish for ear in heard] == [{0: "cancelled"}] * 2
    assert not engine._thread.is_alive()


def test_a_thousand_requests_leave_nothing_behind():
    chance = random.Random(5)
    model = tiny("hybrid", context_length=48, vocab_size=11)
    sizes = []
    with Engine(model, slots=8, chunk=16, queue=2000, draft=NgramDrafts(recent=2000)) as engine:
        for _ in range(10):
            heard, tickets = [], []
            for number in range(100):
                ear = Heard(chance.choice([1, 1, 1, 2]))
                prompt = [
                    chance.choice([1, 2]) if at < 12 else chance.randrange(11) for at in range(chance.randint(1, 20))
                ]
                options = SamplingOptions(chance.choice([0.0, 1.0]), max_tokens=chance.randint(0, 8), seed=number)
                tickets.append(engine.submit(Ask(tuple(prompt), options, (5,), ear.n), ear))
                heard.append(ear)
            for _ in range(10):  # one in ten leaves, at some moment
                time.sleep(chance.random() * 0.01)
                chance.choice(tickets).cancel()
            for ear in heard:
                ear.wait(60)
            stats = engine.stats()
            assert (stats.queued, stats.active, stats.slots_free) == (0, 0, 8)
            assert not engine._rows and not any(seat.busy for seat in engine._seats.seats)
            for seat in engine._seats.seats:
                assert engine._seats.memory.lengths[seat.number] == seat.read == len(seat.tokens)
            sizes.append(engine._seats.memory.bytes())
    assert stats.cancelled > 30
    assert sizes[-1] <= 1.05 * max(sizes[2:5])
    assert sum(len(seat.tokens) for seat in engine._seats.seats) <= 8 * 48


def test_an_event_is_small_and_plain():
    assert Event(0, 5) == Event(0, 5, 0.0, (), None, "", False)
