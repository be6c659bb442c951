"""An imported model is a run like any other: listed, described, measured, exported; of a failure nothing is left."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from test_gguf import TINY, tiny_gguf

import nomoat
from nomoat.cli.entry import main
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.run import Run, load
from nomoat.data.tokenizer import train_bpe
from nomoat.hub import importing
from nomoat.hub.chat_files import read_vocabulary
from nomoat.hub.foreign import open_foreign

TEXT = "the cat sat on the mat. the dog ran in the rain. "


@pytest.fixture
def folder(tmp_path, runs_root):
    """A tiny Qwen3 in the form of Hugging Face, with a tokenizer of ours, a licence and a chat template."""
    tokenizer = train_bpe([TEXT * 40], 300)
    small = nomoat.import_model(tiny_gguf(tmp_path / "small.gguf"))
    out = nomoat.export(small, "hf", tmp_path / "published")
    config = json.loads((out / "config.json").read_text())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert name in open_weights(out)
    weights = {name: tensor if "emb" not in name and "lm_" not in name else torch.randn(tokenizer.vocab_size, 32)
               for name, tensor in open_weights(out).items()}  # fmt: skip
    from safetensors.torch import save_file

    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": tokenizer.vocab_size}))
    tokenizer.save(out / "tokenizer.json")
    settings = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages }}"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eot, 5]}))
    (out / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return out


def open_weights(path):
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_it_is_a_run_like_any_other(folder, tmp_path):
    seen = []
    run = nomoat.import_model(folder, name="mine", watch=seen.append)
    assert "mine" in run.name
    assert run.status == "done"
    assert [event["done"] for event in seen if event["kind"] == "import"][-1] == seen[-1]["total"]
    listed = next(one for one in nomoat.runs() if one.name == run.name)
    assert (listed.status, listed.step, listed.about) == ("done", None, "mine, imported from Hugging Face.")
    assert isinstance(nomoat.generate(run, "the cat", max_tokens=5), str)
    (tmp_path / "text.txt").write_text(TEXT * 5)
    assert nomoat.evaluate(run, tmp_path / "text.txt").bytes == len(TEXT) * 5
    assert Run.open(run.path).recipe == run.recipe
    chat = run.read_json("chat.json")
    assert chat == {"template": "{{ messages }}", "bos": None, "eos": "<|endoftext|>",
                    "stops": ["<|endoftext|>", "&"], "add_bos": False}  # fmt: skip


def test_its_card_and_ledger_say_whose_it_is(folder):
    run = nomoat.import_model(folder)
    ledger, data = run.read_json("ledger.json"), run.recipe.data
    assert (ledger["licence"], ledger["format"]) == ("MIT", "Hugging Face")
    assert ledger["files"] == {"model.safetensors": data.sha256}
    assert (ledger["source"], data.source) == (folder.name, str(folder.resolve()))
    text = (run.path / "card.md").read_text()
    for part in ("MIT (README.md, line 2", data.sha256, "imported", "Others trained it", "as LlamaForCausalLM"):
        assert part in text
    for part in ("## Cost", "no assistant", "training is"):
        assert part not in text
    stated = nomoat.import_model(folder, licence="apache 2.0")
    assert stated.read_json("ledger.json")["evidence"] == "stated with --licence"
    assert stated.read_json("card.json")["imported"]["licence"] == "Apache-2.0"


def test_what_it_cannot_do_is_said(folder):
    run = nomoat.import_model(folder)
    for act, error in ((nomoat.resume, RunError), (nomoat.evaluate, DataError)):
        with pytest.raises(error, match="its weights were imported from"):
            act(run)
    with pytest.raises(ConfigError, match="nothing to train on"):
        run.recipe.data.stream(None, 1, 0)


def test_without_a_tokenizer_it_is_loaded_and_says_so(tmp_path, runs_root):
    seen = []
    run = nomoat.import_model(tiny_gguf(tmp_path / "bare.gguf"), watch=seen.append)
    assert [event["text"] for event in seen if event["kind"] == "warning"] == [
        "bare.gguf came without a tokenizer: the model can be loaded and exported, but not write text"
    ]
    assert load(run).config == TINY
    with pytest.raises(ConfigError, match="has no tokenizer"):
        nomoat.generate(run, "a")


def test_nothing_is_left_of_an_import_that_fails(folder, runs_root, monkeypatch):
    before = {path.name for path in runs_root.iterdir()}
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        nomoat.import_model(folder)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(importing.checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nomoat.import_model(folder)
    assert {path.name for path in runs_root.iterdir()} == before
    with pytest.raises(DataError, match="there is no file or folder"):
        nomoat.import_model(folder / "nothing")


def test_a_token_that_begins_a_text_is_found_where_it_is_said(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    assert read_vocabulary(folder)[1]["add_bos"] is False
    eot = tokenizer["added_tokens"][0]["id"]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {"<|endoftext|>": {
            "id": "<|endoftext|>", "ids": [eot], "tokens": ["<|endoftext|>"]}},
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_vocabulary(folder)[1]["add_bos"] is True
    (folder / "chat_template.jinja").write_text("newer")
    assert read_vocabulary(folder)[1]["template"] == "newer"
    (folder / "generation_config.json").write_text('{"eos_token_id": [-1, 99999999999999999999, true, "a"]}')
    assert read_vocabulary(folder)[1]["stops"] == ["<|endoftext|>"]
    (folder / "tokenizer.json").unlink()
    assert read_vocabulary(folder) is None


def test_the_commands(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(folder), "--name", "told", "--dtype", "bf16", "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["kind"] for line in lines} == {"import", "result"}
    assert lines[-1]["card"]["imported"]["format"] == "Hugging Face"
    assert main(["export", "told", "--output", "out", "--dtype", "f16", "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (told["path"], told["to"]) == (str(tmp_path / "out"), "hf")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "README.md", "NOTICE",
    }  # fmt: skip
    assert {tensor.dtype for tensor in open_weights(tmp_path / "out").values()} == {torch.float16}
    assert main(["export", "told", "--output", "out"]) == 1
    assert "already something at" in capfd.readouterr().err
    assert main(["import", "nowhere"]) == 1
    assert "there is no file or folder nowhere" in capfd.readouterr().err


def llama2c_file(path, weights, head, tied):
    """karpathy/llama2.c, version 0: seven numbers, the tensors layer by layer, two tables that nobody reads."""
    layers = range(head[2])
    kinds = ["attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"]
    order = ["tok", *(f"{layer}.{kind}" for kind in kinds for layer in layers), "norm"]
    numbers = [weights[name].astype("<f4").tobytes() for name in order]
    numbers += [bytes(4 * head[6] * head[0] // head[3])] + ([] if tied else [weights["output"].astype("<f4").tobytes()])
    path.write_bytes(struct.pack("<7i", *head[:5], head[5] if tied else -head[5], head[6]) + b"".join(numbers))
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_says_what_it_says_in_transformers(tied, tmp_path, runs_root):
    pytest.importorskip("transformers")
    from tiny_models import IDS, MODELS, logits_of, theirs

    name = "llama-tied" if tied else "llama"
    fields = {**MODELS[name][1], "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    MODELS["llama2c"] = ("Llama", fields)
    model = theirs("llama2c")
    own = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    weights = {
        "tok": own["model.embed_tokens.weight"],
        "norm": own["model.norm.weight"],
        "output": own["lm_head.weight"],
    }
    table = {"attention_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj",
             "wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}  # fmt: skip
    for layer in range(2):
        for short, long in table.items():
            tensor = own[f"model.layers.{layer}.{long}.weight"]
            if short in ("wq", "wk"):  # heads of 8: row 2i of theirs is row i of transformers', row 2i + 1 row i + 4
                rows = [8 * (row // 8) + (row % 8) // 2 + 4 * (row % 2) for row in range(len(tensor))]
                tensor = tensor[rows]
            weights[f"{layer}.{short}"] = tensor
    head = (32, 48, 2, 4, fields["num_key_value_heads"], 50, 64)
    path = llama2c_file(tmp_path / "model.bin", weights, head, tied)
    run = nomoat.import_model(path)
    torch.testing.assert_close(logits_of(run), model(IDS).logits, rtol=1e-4, atol=1e-4)
    (tmp_path / "short.bin").write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="that begins like it has"):
        open_foreign(tmp_path / "short.bin")
    for content in (b"", bytes(28), struct.pack("<7i", *[2**24] * 7), struct.pack("<7i", -1, *[1] * 6), b"ak42" * 99):
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"no model that can be read|that begins like it"):
            open_foreign(tmp_path / "x.bin")


def test_the_published_stories_are_told(shared, runs_root):
    pytest.importorskip("nomoat.hub.vocabulary")
    run = nomoat.import_model(shared / "weights" / "tinystories-260k" / "stories260K.bin")
    assert run.read_json("ledger.json")["licence"] == "MIT"
    text = nomoat.generate(run, "Once upon a time", max_tokens=60, temperature=0)
    assert text.startswith(", there was a little girl named Lily.")


def test_the_published_fixture_keeps_its_type(shared, runs_root):
    found = open_foreign(shared / "weights" / "hf-llama-fixture")
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.bfloat16}
    run = nomoat.import_model(shared / "weights" / "hf-llama-fixture")
    assert run.read_json("card.json")["model"]["parameters"] == 795_776
    weights = open_weights(shared / "weights" / "hf-llama-fixture")
    assert torch.equal(load(run).state_dict()["embed.weight"], weights["model.embed_tokens.weight"].float())
    assert np.isfinite(load(run).state_dict()["embed.weight"].numpy()).all()
