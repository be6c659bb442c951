"""A model whose every probability is known: a chain of order two, which needs its memory to be right.

table[a, b, c] = P(c | the token before last is a, the last is b); a = V stands for "nothing before".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limits:
    context_length: int
    vocab_size: int


class Slots:
    """What the chain remembers: the tokens of each slot, and no more of them than fit."""

    def __init__(self, slots, length):
        self.rows = [[] for _ in range(slots)]
        self.length = length
        self.most = 0

    def reserve(self, slot, length):
        assert length <= self.length and 0 <= slot < len(self.rows)

    def fork(self, source, target):
        self.rows[target] = list(self.rows[source])

    def rewind(self, slot, length):
        del self.rows[slot][length:]
        return len(self.rows[slot])

    def free(self, slot):
        self.rows[slot] = []

    def bytes(self):
        return 0


class Markov:
    """Decodes and Scores."""

    def __init__(self, table, context_length=16):
        self.table = table
        self.config = Limits(context_length, table.shape[1])
        self.memories = []
        self.calls = []

    @classmethod
    def random(cls, vocab_size, context_length=16, seed=0, sharpness=1.0):
        noise = torch.randn(vocab_size + 1, vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))
        return cls((noise * sharpness).softmax(-1), context_length)

    def memory(self, slots, length):
        assert length <= self.config.context_length
        self.memories.append(Slots(slots, length))
        return self.memories[-1]

    def begin(self, batch, memory, slots):
        pass

    def decode(self, tokens_BL, memory, slots, last=False):
        self.calls.append((tuple(slots), tokens_BL.shape[1]))
        rows = []
        for tokens, slot in zip(tokens_BL.tolist(), slots, strict=True):
            row = []
            for token in tokens:
                before = memory.rows[slot][-1] if memory.rows[slot] else self.config.vocab_size
                row.append(self.table[before, token])
                memory.rows[slot].append(token)
                assert len(memory.rows[slot]) <= memory.length, "more tokens than the memory was made for"
            rows.append(torch.stack(row))
        logits_BLV = torch.stack(rows).log()
        return logits_BLV[:, -1:] if last else logits_BLV

    def score(self, batch):
        tokens_BL = batch["tokens"]
        rows, length = tokens_BL.shape
        assert length - 1 <= self.config.context_length, "longer than the context"
        last_BL, wanted_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]
        nothing_B1 = torch.full((rows, 1), self.config.vocab_size)
        before_BL = torch.cat([nothing_B1, last_BL[:, :-1]], dim=1)
        if "document" in batch:
            document_BL = batch["document"][:, :-1]
            new_BL = torch.cat([nothing_B1.bool(), document_BL[:, 1:] != document_BL[:, :-1]], dim=1)
            before_BL = before_BL.masked_fill(new_BL, self.config.vocab_size)
        return self.table[before_BL, last_BL, wanted_BL].log() * batch["mask"][:, 1:]
