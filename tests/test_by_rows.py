"""Reading by rows: the same tensors as read whole, never many at once; logits only where asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from listening import Chain, Heard

from nomoat.core import checkpoint
from nomoat.core.device import hollow
from nomoat.core.tensors import Later
from nomoat.families.lm import LM
from nomoat.hub import foreign, packing
from nomoat.hub.blocks import FORMATS, row_bytes, unpack
from nomoat.hub.gguf import Made, read_header, write_gguf
from nomoat.nn.backbone import Backbone
from nomoat.nn.packed import Packed, tiled
from nomoat.sampling.tokens import SamplingOptions
from nomoat.serve.engine import Ask, Engine

ROWS, COLUMNS = 83, 256


def blocks_of(kind, rows, columns):
    """Bytes of sound blocks: integers of every kind, scales that are small half floats."""
    rng = np.random.default_rng(0)
    if kind == "F16":
        return rng.normal(0, 0.1, (rows, columns)).astype(np.float16).view(np.uint8)
    form = FORMATS[kind]
    found = rng.integers(0, 256, (rows * columns // form.count, form.size), dtype=np.uint8)
    for at in {"Q6_K": (208,), "Q4_1": (0, 2)}.get(kind, (0,)):
        found[:, at : at + 2] = rng.normal(0, 0.01, (len(found), 1)).astype(np.float16).view(np.uint8)
    return found.reshape(rows, row_bytes(kind, columns))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q6_K", "F16"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows_at_once", [1, 7, 16, 40])
def test_blocks_read_by_rows_are_packed_to_the_same_bits(kind, bits, rows_at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "ROW_NUMBERS", rows_at_once * COLUMNS)
    rows_RS = blocks_of(kind, ROWS, COLUMNS)
    write_gguf(tmp_path / "x.gguf", {}, {"x": Made((ROWS, COLUMNS), kind, lambda: rows_RS)})
    later = foreign.later(read_header(tmp_path / "x.gguf"), "x")
    pieces = list(later.rows())
    assert max(map(len, pieces)) == rows_at_once
    assert torch.equal(torch.cat(pieces), later.make())
    whole = torch.from_numpy(unpack(kind, rows_RS).copy()).view(ROWS, COLUMNS)
    wanted = tiled(whole, bits)
    once = packing._Once(later, bits)
    for _ in range(2):  # asked in either order, and again
        assert torch.equal(torch.cat(list(once.scales())), wanted[1])
        assert torch.equal(torch.cat(list(once.tiles())), wanted[0])


def model_of(rows, columns, seen):
    """A model's config and tensors whose table counts the largest piece that it was asked for."""
    config = LM(rows, 8, Backbone(width=columns, depth=1, heads=2))
    with hollow():
        shapes = {name: tuple(tensor.shape) for name, tensor in config.build({}).state_dict().items()}

    def pieces():
        for start in range(0, rows, 24):
            piece = torch.randn(min(24, rows - start), columns, generator=torch.Generator().manual_seed(start))
            seen.append(len(piece))
            yield piece

    def whole():
        raise AssertionError("the table was asked for as a whole")

    tensors = {
        name: Later(shape, torch.float32, lambda shape=shape: torch.ones(shape)) for name, shape in shapes.items()
    }
    tensors["embed.weight"] = Later((rows, columns), torch.float32, whole, pieces)
    return config, tensors, pieces


def test_a_table_is_packed_and_saved_without_ever_being_whole_and_read_once(tmp_path):
    seen = []
    config, tensors, pieces = model_of(1000, 64, seen)
    small, made = packing.packed(config, tensors, 8)
    path = checkpoint.save(tmp_path, 0, {"weights": made}, {})
    assert sum(seen) == 1000 and max(seen) == 24, "read more than once, or more than its pieces"
    assert checkpoint.verify(path) is None
    read = checkpoint.read(path, "weights")
    assert small.bits == 8
    wanted = tiled(torch.cat(list(pieces())), 8)
    assert torch.equal(read["embed.matrix.tiles"], wanted[0]) and torch.equal(read["embed.matrix.scales"], wanted[1])


def test_one_that_gives_too_few_rows_is_no_checkpoint(tmp_path):
    short = Later.by_rows((5, 4), torch.float32, lambda: iter((torch.ones(2, 4), torch.ones(2, 4))))
    with pytest.raises(AssertionError):
        checkpoint.save(tmp_path, 0, {"weights": {"x": short}}, {})
    assert checkpoint.latest(tmp_path) is None


def test_a_saved_tensor_is_read_by_rows_and_every_tensor_is_aligned(tmp_path, monkeypatch):
    monkeypatch.setattr("nomoat.core.tensors.ROW_NUMBERS", 30)
    tensors = {"odd": torch.arange(3, dtype=torch.uint8), "big": torch.randn(11, 12), "half": torch.ones(5).half()}
    path = checkpoint.save(tmp_path, 0, {"weights": tensors}, {})
    found = checkpoint.waiting(path, "weights")
    assert [len(piece) for piece in found["big"].rows()] == [2, 2, 2, 2, 2, 1]
    assert all(torch.equal(torch.cat(list(found[name].rows())), tensor) for name, tensor in tensors.items())
    data = (path / "weights.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0 and data[start : start + 11 * 12 * 4] == tensors["big"].numpy().tobytes()
    with (path / "weights.safetensors").open("r+b") as file:
        file.seek(start + 5)
        file.write(b"\xff")
    assert "SHA-256" in (checkpoint.verify(path) or "")


@pytest.mark.parametrize("bits", [8, 4])
def test_single_rows_are_those_of_the_whole(bits):
    matrix = Packed(50, 64, bits).fill(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)))
    index = torch.tensor([[3, 49], [17, 3]])
    assert torch.equal(matrix.rows(index), matrix.weight()[index])
    assert np.array_equal(matrix.few_rows(index.flatten().numpy()), matrix.rows(index).flatten(0, 1).numpy())


def test_hollow_modules_have_the_shapes_and_types_of_real_ones():
    for config in (LM.tiny(), replace(LM.tiny(), backbone=Backbone(width=32, depth=2, mixers=("attention", "mamba")))):
        real = config.build({}).state_dict()
        with hollow():
            empty = config.build({}).state_dict()
        assert all(tensor.is_meta for tensor in empty.values())
        assert {name: (t.shape, t.dtype) for name, t in empty.items()} == {
            n: (t.shape, t.dtype) for n, t in real.items()
        }


class Counting(Chain):
    """Counts the positions whose logits were asked for."""

    made = 0

    def decode(self, tokens_BL, memory, slots, last=False):
        logits_BLV = super().decode(tokens_BL, memory, slots, last)
        self.made += logits_BLV.shape[0] * logits_BLV.shape[1]
        return logits_BLV


@pytest.mark.parametrize(("told", "made"), [(False, 4 + 5), (True, 99 + 5)])
def test_the_engine_asks_for_logits_only_where_somebody_reads_them(told, made):
    model = Counting.random(5, context_length=200)
    with Engine(model, slots=1, chunk=50) as engine:
        heard = Heard()
        options = SamplingOptions(max_tokens=5, seed=1)
        engine.submit(Ask(tuple([1, 2] * 50), options, prompt_logprobs=told), heard)
        heard.wait()
    assert model.made == made, "a prompt of 99 tokens in four pieces, then five steps"
