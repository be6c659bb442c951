"""GGUF: every block type against the `gguf` package, files both ways, and headers that lie: errors, nothing else."""

from __future__ import annotations

import json
import random
import resource
import struct
import time

import numpy as np
import pytest
import torch

from nomoat.core.errors import DataError, NomoatError
from nomoat.core.run import load
from nomoat.core.tensors import read_later, write_tensors
from nomoat.families.lm import LM
from nomoat.hub import blocks, names
from nomoat.hub.config import write_config
from nomoat.hub.exporting import export_model
from nomoat.hub.foreign import open_foreign, open_gguf
from nomoat.hub.gguf import Made, read_header, write_gguf
from nomoat.hub.gguf_keys import metadata_of
from nomoat.hub.importing import import_model
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone

TINY = LM(7, 16, Backbone(width=32, depth=1, heads=2, kv_heads=2, mlp_width=32, dialect=dialects.LLAMA))


def sound_bytes(kind, rows, columns, seed=0):
    """Random rows of a block type whose scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    form = blocks.FORMATS[kind]
    packed = rng.integers(0, 256, (rows * columns // form.count, form.size), dtype=np.uint8)
    if kind in blocks.PLAIN:
        return blocks.pack(kind, rng.standard_normal((rows, columns)))
    halves = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    for at in halves:
        packed[:, at : at + 2] = rng.uniform(-0.1, 0.1, (len(packed), 1)).astype(np.float16).view(np.uint8)
    return packed.reshape(rows, -1)


@pytest.mark.parametrize("kind", blocks.FORMATS)
def test_each_type_is_read_to_the_last_bit(kind):
    gguf = pytest.importorskip("gguf")
    packed = sound_bytes(kind, 6, 512)
    theirs = gguf.GGMLQuantizationType[kind]
    assert theirs.value == blocks.FORMATS[kind].code
    assert packed.shape[1] == blocks.row_bytes(kind, 512)
    assert np.array_equal(blocks.unpack(kind, packed), gguf.quants.dequantize(packed, theirs))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_each_type_that_is_written_has_the_same_bytes(kind):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(1)
    numbers = (rng.standard_normal((40, 256)) * 10.0 ** rng.integers(-6, 4, (40, 1))).astype(np.float32)
    numbers[0], numbers[1, :32], numbers[2, 0] = 0, 0.5, -127.5
    packed = blocks.pack(kind, numbers)
    theirs = np.asarray(gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind]))
    assert np.array_equal(packed, theirs.view(np.uint8))
    most = np.abs(numbers).max(1)
    error = np.abs(blocks.unpack(kind, packed) - numbers).max(1)
    assert (error <= {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 5e-3}[kind] * most + 1e-4).all()


def test_what_no_half_can_hold_is_refused():
    for kind in ("F16", "Q8_0"):
        with pytest.raises(DataError, match="too large for half precision"):
            blocks.pack(kind, np.full((1, 32), 1e9, np.float32))
    with pytest.raises(DataError, match="a row of 33 numbers cannot be Q8_0"):
        blocks.pack("Q8_0", np.zeros((1, 33)))
    assert np.isnan(blocks.unpack("BF16", blocks.pack("BF16", np.full((1, 2), np.nan)))).all()


METADATA = {"general.architecture": "llama", "yes": True, "small": -5, "large": 2**40, "share": 0.1, "text": "größe",
            "words": ["a", "", "ü"], "numbers": [1, -2, 3], "shares": [0.5, 1.5], "flags": [True, False],
            "nothing": []}  # fmt: skip


def test_a_file_of_ours_is_read_by_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    rows = {kind: sound_bytes(kind, 3, 256) for kind in blocks.FORMATS}
    tensors = {kind: Made((3, 1, 256), kind, lambda kind=kind: rows[kind]) for kind in rows}
    write_gguf(tmp_path / "a.gguf", METADATA, tensors)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    said = {key: reader.fields[key].contents() for key in METADATA if key not in ("nothing", "share")}
    assert said == {key: value for key, value in METADATA.items() if key not in ("nothing", "share")}
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == tensor.name
        assert tensor.shape.tolist() == [256, 1, 3]
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8).reshape(3, -1), rows[tensor.name])
    header = read_header(tmp_path / "a.gguf")
    assert header.metadata == METADATA
    assert {name: header.tensors[name].shape for name in rows} == dict.fromkeys(rows, (3, 1, 256))
    assert all(np.array_equal(header.read(name), rows[name]) for name in rows)


def test_a_file_of_the_gguf_package_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_array("words", ["a", "b"])
    writer.add_float32("epsilon", 1e-5)
    writer.add_uint64("count", 2**63)
    data = np.arange(512, dtype=np.float32).reshape(2, 256)
    writer.add_tensor("plain", data)
    writer.add_tensor("quantised", gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q5_1),
                      raw_dtype=gguf.GGMLQuantizationType.Q5_1)  # fmt: skip
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = read_header(tmp_path / "b.gguf")
    assert header.metadata["words"] == ["a", "b"]
    assert (header.metadata["epsilon"], header.metadata["count"]) == (1e-5, 2**63)
    assert np.array_equal(header.read("plain").view(np.float32), data)
    assert np.allclose(blocks.unpack("Q5_1", header.read("quantised")), data, atol=5)
    for place in header.tensors.values():
        assert place.offset % 64 == 0


def tiny_gguf(path, kinds=("F32",), family=TINY):
    """A whole model of a few kilobytes; matrices take turns with the types."""
    shapes = {part.name: part.shape for whole in names.wholes(family, names.GGUF["llama"]).values()
              for part in whole.parts}  # fmt: skip
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        kind = kinds[matrices.index(name) % len(kinds)] if name in matrices else "F32"
        rows = sound_bytes(kind, shape[0] if len(shape) == 2 else 1, shape[-1], number)
        tensors[name] = Made(shape, kind, lambda rows=rows: rows)
    extra = {
        "general.alignment": 32,
        "tokenizer.ggml.tokens": ["<s>", "a", "b"],
        "tokenizer.ggml.scores": [0.0, 1.0, 2.0],
    }
    write_gguf(path, metadata_of(family) | extra, tensors)
    return path


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", "q8"), ("Q4_0", "q4")])
def test_packed_on_the_way_in_they_are_what_stands_in_the_file(tmp_path, kind, dtype):
    """Blocks that a quantiser made (one weight of each is at the end of the range) are kept to the last bit."""
    path = tiny_gguf(tmp_path / "c.gguf", ("F32",))
    tensors = open_foreign(path).tensors
    made, file = tmp_path / "first", tmp_path / "again.gguf"
    first = import_model(path, made, dtype=dtype)
    export_model(first, "gguf", file, "q8_0" if kind == "Q8_0" else "f32")
    second = import_model(file, tmp_path / "second", dtype=dtype)
    assert set(open_foreign(file).tensors) == set(tensors)
    one, other = (load(run).state_dict() for run in (first, second))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert first.recipe.family.bits == int(dtype[1])


def packed_header(*parts):
    """A GGUF of version 3 from texts, (letter, number) pairs and bytes."""
    out = b"GGUF" + struct.pack("<I", 3)
    for part in parts:
        if isinstance(part, str):
            out += struct.pack("<Q", len(part)) + part.encode()
        else:
            out += part if isinstance(part, bytes) else struct.pack("<" + part[0], part[1])
    return out


def one_tensor(name="t", axes=(32,), code=0, offset=0, data=b"\0" * 4096, again=()):
    head = [("Q", 1 + len(again)), ("Q", 0)]
    for spot in (0, *again):
        head += [name if not spot else f"{name}{spot}", ("I", len(axes)), *(("Q", axis) for axis in axes)]
        head += [("I", code), ("Q", spot or offset)]
    text = packed_header(*head)
    return text + b"\0" * (-len(text) % 32) + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GGUF", "beyond its end"),
        (b"GGUF\x01\0\0\0" + bytes(16), "versions 2 and 3 are read"),
        (b"GGUF\0\0\0\x03" + bytes(16), "big-endian"),
        (packed_header(("Q", 2**40), ("Q", 0)), "claims 1,099,511,627,776 tensors"),
        (packed_header(("Q", 0), ("Q", 2**40)), "claims 1,099,511,627,776 keys"),
        (packed_header(("Q", 0), ("Q", 1), ("Q", 2**62)), "bytes of one text"),
        (packed_header(("Q", 0), ("Q", 1), ("Q", 2**20), b"abc"), "beyond its end"),
        (packed_header(("Q", 0), ("Q", 1), "k", ("I", 99)), "type 99"),
        (packed_header(("Q", 0), ("Q", 1), "k", ("I", 9), ("I", 4), ("Q", 2**61)), "items of one list"),
        (packed_header(("Q", 0), ("Q", 1), "k", ("I", 9), *[("I", 9), ("Q", 1)] * 9), "lists deep"),
        (packed_header(("Q", 0), ("Q", 2), *["k", ("I", 0), b"\1"] * 2), "the key `k` twice"),
        (packed_header(("Q", 0), ("Q", 1), "general.alignment", ("I", 4), ("I", 0)), "an alignment of 0"),
        (packed_header(("Q", 0), ("Q", 1), "general.alignment", ("I", 8), "x"), "an alignment of x"),
        (one_tensor(axes=()), "0 axes"),
        (one_tensor(axes=(1,) * 5), "5 axes"),
        (one_tensor(axes=(2**63, 2**63)), "ends at byte"),
        (one_tensor(axes=(0,)), "has sizes (0,)"),
        (one_tensor(code=10), "type Q2_K, which is not read here"),
        (one_tensor(code=77), "number 77"),
        (one_tensor(axes=(33,), code=8), "a row of 33 numbers cannot be Q8_0"),
        (one_tensor(offset=8), "at byte 8"),
        (one_tensor(offset=2**62), "ends at byte"),
        (one_tensor(axes=(2048,)), "the file is cut off"),
        (one_tensor(axes=(64,), again=(32,)), "lies over another one"),
    ],
)
def test_a_header_that_lies_is_refused(content, said, tmp_path):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_header(tmp_path / "x.gguf")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.architecture", "gemma3", "`general.architecture` is gemma3"),
        ("llama.expert_count", 8, "`llama.expert_count` = 8"),
        ("llama.attention.head_count", [2, 2], "must be a whole number"),
        ("llama.attention.head_count", 0, "must be a whole number"),
        ("llama.rope.scaling.type", "longrope", "`llama.rope.scaling.type` is longrope"),
        ("llama.rope.dimension_count", 8, "`llama.rope.dimension_count` is 8"),
        ("llama.logit_scale", 0.5, "`llama.logit_scale` = 0.5"),
        ("llama.block_count", 2, "lacks the tensor `blk.1"),
        ("llama.block_count", 10**7, "10,000,000 layers"),
        ("llama.embedding_length", 64, "asks for"),
    ],
)
def test_metadata_that_cannot_be_honoured_is_refused_by_name(key, value, said, tmp_path):
    header = read_header(tiny_gguf(tmp_path / "d.gguf"))
    tensors = {name: Made(place.shape, place.kind, lambda name=name: header.read(name))
               for name, place in header.tensors.items()}  # fmt: skip
    write_gguf(tmp_path / "e.gguf", {**header.metadata, key: value}, tensors)
    with pytest.raises(DataError) as caught:
        open_foreign(tmp_path / "e.gguf")
    assert said in str(caught.value)


def mutated(content, chance, span):
    """`content` with a few bytes changed, numbers made extreme, pieces taken out or put in, within its first `span`."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(max(1, min(span, len(data) - 8)))
        if len(data) <= 8:
            break
        match chance.randrange(6):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                number = chance.choice((0, 1, 2, 31, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
                data[at : at + 8] = struct.pack("<Q", number)
            case 3:
                del data[at : at + chance.randrange(1, 16)]
            case 4:
                data[at:at] = chance.randbytes(chance.randrange(1, 16))
            case 5:
                del data[at:]
    return bytes(data)


def survive(open_it, write_it, content, span, cases=10_000):
    """Every case opens or is refused in our words; returns how many were refused."""
    chance, refused, slowest = random.Random(0), 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(cases):
        write_it(mutated(content, chance, span))
        start = time.perf_counter()
        try:
            open_it()
        except NomoatError as error:
            refused += 1
            assert error.what
        slowest = max(slowest, time.perf_counter() - start)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert slowest < 10  # seconds: no case hangs
    return refused


def test_ten_thousand_broken_gguf_headers_give_errors_only(tmp_path):
    path = tiny_gguf(tmp_path / "f.gguf")
    content = path.read_bytes()
    start = min(place.offset for place in read_header(path).tensors.values())
    assert survive(lambda: open_gguf(path), path.write_bytes, content, start) > 5_000
    assert survive(lambda: open_foreign(path), path.write_bytes, content, start, 500) > 250


def test_ten_thousand_broken_safetensors_headers_give_errors_only(tmp_path):
    shapes = {part.name: part.shape for whole in names.wholes(TINY, names.HF["llama"]).values() for part in whole.parts}
    path = tmp_path / "model.safetensors"
    write_tensors(path, {name: torch.zeros(shape) for name, shape in shapes.items()}, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(write_config(TINY)))
    content = path.read_bytes()
    span = 8 + int.from_bytes(content[:8], "little")
    assert survive(lambda: read_later(path), path.write_bytes, content, span) > 5_000
    assert survive(lambda: open_foreign(tmp_path), path.write_bytes, content, span, 500) > 250


def safetensors_file(path, header, data=bytes(64)):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
         "b": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}},
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}},
        {"a": {"dtype": "F8_E4M3", "shape": [64], "data_offsets": [0, 64]}},
        {"a": {"dtype": "F32", "shape": [-8], "data_offsets": [0, 32]}},
        ["no object"],
    ],
    ids=["overlapping", "beyond the end", "with a hole", "of another type", "negative", "a list"],
)  # fmt: skip
def test_a_hostile_safetensors_file_is_refused(header, tmp_path):
    safetensors_file(tmp_path / "model.safetensors", header)
    (tmp_path / "config.json").write_text(json.dumps(write_config(TINY)))
    with pytest.raises(NomoatError, match=r"model\.safetensors is no safetensors file that can be read"):
        open_foreign(tmp_path)


class Executes:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_run(name, tmp_path):
    proof = tmp_path / "it ran"
    torch.save({"weight": Executes(proof)}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(write_config(TINY)))
    with pytest.raises(NomoatError, match=r"holds no model\.safetensors|is no safetensors file"):
        open_foreign(tmp_path)
    if name != "model.safetensors":
        with pytest.raises(DataError, match="no model that can be read"):
            open_foreign(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("index", "said"),
    [({"weight_map": {"a": "../secret"}}, "names no files of this folder"), ({"weight_map": {}}, "names no files"),
     ({"weight_map": 3}, "names no files"), ({"weight_map": {"a": "gone.safetensors"}}, "No such file")],
)  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(index, said, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(write_config(TINY)))
    with pytest.raises(NomoatError, match=said):
        open_foreign(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{" * 100_000, '{"a": ' * 100_000, "\xff"])
def test_a_config_that_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_foreign(tmp_path)
