"""What the tests of the engine need: a listener that waits for the ends, tiny models whose every step is checked."""

from __future__ import annotations

import threading
from collections import defaultdict

import torch
from markov import Markov, Slots

from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import MAMBA2, OURS, MambaConfig

MIXERS = {"attention": "attention", "mamba": "mamba", "hybrid": ("mamba", "attention", "mamba")}


class Heard:
    """A sink that keeps what each choice was told."""

    def __init__(self, n=1, pause=None):
        self.tokens, self.events, self.prompt = defaultdict(list), defaultdict(list), []
        self.finish, self.errors = {}, {}
        self.n, self.pause = n, pause
        self.done = threading.Event()
        self.begun = threading.Event()

    def __call__(self, event):
        if event.prompt:
            self.prompt.append(event)
            return
        assert event.choice not in self.finish, "told after the end"
        self.events[event.choice].append(event)
        if event.token is not None:
            self.tokens[event.choice].append(event.token)
            self.begun.set()
            if self.pause is not None:
                self.pause()
        if event.finish:
            self.finish[event.choice] = event.finish
            self.errors[event.choice] = event.error
            if len(self.finish) == self.n:
                self.done.set()

    def wait(self, seconds=30):
        assert self.done.wait(seconds), "the engine does not answer"
        return self


def hear(engine, ask):
    """Submit and wait."""
    heard = Heard(ask.n)
    engine.submit(ask, heard)
    return heard.wait()


class GrowingSlots(Slots):
    def reserve(self, slot, length):
        self.length = max(self.length, length)


class Chain(Markov):
    """A Markov chain whose memory grows; with `states` it can be rewound to the ends of calls only."""

    states = False

    def memory(self, slots, length):
        self.memories.append((Snapshots if self.states else GrowingSlots)(slots, length))
        return self.memories[-1]


class Snapshots(GrowingSlots):
    """Rewinds as a state-space layer does."""

    def __init__(self, slots, length):
        super().__init__(slots, length)
        self.kept = [set() for _ in range(slots)]

    def snapshot(self, slots):
        for slot in slots:
            self.kept[slot].add(len(self.rows[slot]))

    def fork(self, source, target):
        super().fork(source, target)
        self.kept[target] = set(self.kept[source])

    def rewind(self, slot, length):
        if length < len(self.rows[slot]):
            length = max((kept for kept in self.kept[slot] if kept <= length), default=0)
        self.kept[slot] = {kept for kept in self.kept[slot] if kept <= length}
        return super().rewind(slot, length)

    def free(self, slot):
        super().free(slot)
        self.kept[slot] = set()


def tiny(kind, context_length=96, vocab_size=23, seed=0, scale=0.35):
    """A language model with random weights, none of them zero."""
    dialect = MAMBA2 if kind == "mamba" else OURS
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mamba = MambaConfig(state_width=8, head_width=8, chunk=8)
        backbone = Backbone(width=16, depth=3, heads=2, mixers=MIXERS[kind], dialect=dialect, mamba=mamba)
        model = LM(vocab_size, context_length, backbone).build({}).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "conv" not in name:
                torch.nn.init.normal_(weight, std=scale)
    return model


class Checked:
    """A model that holds every call against itself, reading the whole text from nothing."""

    def __init__(self, model):
        self.model, self.config = model, model.config
        self.seats = None
        self.calls, self.worst, self.fed = [], 0.0, 0
        self.truth = {}

    def memory(self, slots, length):
        self.texts = [[] for _ in range(slots)]
        return Followed(self.model.memory(slots, length), self.texts)

    def begin(self, batch, memory, slots):
        pass

    def decode(self, tokens_BL, memory, slots, last=False):
        logits_BLV = self.model.decode(tokens_BL, memory.inner, slots)
        length = tokens_BL.shape[1]
        self.calls.append((len(slots), length))
        self.fed += tokens_BL.numel()
        for row, slot in enumerate(slots):
            self.texts[slot] += tokens_BL[row].tolist()
            assert memory.inner.lengths[slot] == len(self.texts[slot]) <= self.config.context_length
            apart = (logits_BLV[row] - self.alone(tuple(self.texts[slot]))[-length:]).abs().max()
            self.worst = max(self.worst, float(apart))
        return logits_BLV[:, -1:] if last else logits_BLV

    def alone(self, text):
        """The logits [L, V] of a text, read in one call by itself."""
        if text not in self.truth:
            self.truth[text] = self.model.decode(torch.tensor([text]), self.model.memory(1, len(text)), [0])[0]
        return self.truth[text]


class Followed:
    """A memory, and beside it the texts that it should hold."""

    def __init__(self, inner, texts):
        self.inner, self.texts = inner, texts
        self.reserve, self.bytes, self.snapshot = inner.reserve, inner.bytes, inner.snapshot

    def fork(self, source, target):
        self.inner.fork(source, target)
        self.texts[target] = list(self.texts[source])

    def rewind(self, slot, length):
        reached = self.inner.rewind(slot, length)
        del self.texts[slot][reached:]
        return reached

    def free(self, slot):
        self.inner.free(slot)
        self.texts[slot] = []
