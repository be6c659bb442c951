"""Adapters of PEFT: the same logits there and here, in both directions; whatever cannot be honoured is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import near, stirred
from torch.testing import assert_close

import nomoat
from nomoat.cli.entry import main
from nomoat.core import checkpoint
from nomoat.core.errors import CheckpointError, ConfigError, DataError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.hub.importing import import_model
from nomoat.nn.lora import TARGETS, LoRA, adapted_layers

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

from tiny_models import IDS, MODELS, logits_of, theirs  # noqa: E402

# What peft and transformers tell each other is theirs to mend.
pytestmark = [pytest.mark.usefixtures("runs_root"), pytest.mark.filterwarnings("ignore:::(peft|transformers|torch).*")]
NAMES = ("llama", "llama-biased", "qwen2", "qwen3", "gpt2", "mamba2")
MODULES = {
    "gpt2": ["c_attn", "c_proj", "c_fc"], "mamba2": ["in_proj"],  # peft refuses the other one
    "usual": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip


@pytest.fixture
def base(request, tmp_path):
    """A tiny model of transformers and the run that it was imported as."""
    name = getattr(request, "param", "llama")
    their = theirs(name)
    their.save_pretrained(tmp_path / name)
    return name, their, import_model(tmp_path / name)


def adapted(base, lora):
    """An adapted run of step 0 whose adapter says something."""
    recipe = Recipe("Adapted.", base.recipe.family, base.recipe.data, base.recipe.budget, 1,
                    start=Ref(base.name), adapt=lora)  # fmt: skip
    run = Run.create(None, "adapted", recipe)
    torch.manual_seed(1)
    family = stirred(run.recipe.build())
    checkpoint.save(run.checkpoints, 0, {"weights": family.kept()}, {"step": 0})
    return run


def peft_of(name, their, seed=0, **how):
    """Their model with an adapter of theirs that says something."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    modules = how.pop("target_modules", MODULES.get(name, MODULES["usual"]))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, fan_in_fan_out=name == "gpt2",
                             task_type="CAUSAL_LM", **how)  # fmt: skip
    model = peft.get_peft_model(their, config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_what_we_adapt_says_the_same_in_peft(base, dora, tmp_path):
    peft = pytest.importorskip("peft")
    name, their, run = base
    lora = LoRA(4, 6.0, ("qkv",) if name == "mamba2" else TARGETS, dora=dora)
    ours = adapted(run, lora)
    folder = nomoat.export(ours, "peft", tmp_path / "out")
    model = peft.PeftModel.from_pretrained(their, folder).eval()
    with torch.no_grad():
        assert_close(model(IDS).logits, logits_of(ours), rtol=1e-4, atol=1e-4)
    assert (logits_of(ours) - logits_of(run)).abs().max() > 0.1
    again = nomoat.import_model(folder, base=run)
    near(logits_of(again), logits_of(ours))


@pytest.mark.parametrize("how", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_what_peft_adapts_says_the_same_here(base, how, tmp_path):
    name, their, run = base
    model = peft_of(name, their, **how)
    model.save_pretrained(tmp_path / "theirs")
    ours = nomoat.import_model(tmp_path / "theirs", base=run.name)
    with torch.no_grad():
        assert_close(logits_of(ours), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_two_of_three_parts_alone(base, tmp_path):
    name, their, run = base
    model = peft_of(name, their, target_modules=["k_proj", "up_proj"], use_dora=True)
    model.save_pretrained(tmp_path / "theirs")
    ours = nomoat.import_model(tmp_path / "theirs", base=run)
    with torch.no_grad():
        assert_close(logits_of(ours), model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert ours.recipe.adapt.targets == ("qkv", "up") and ours.recipe.adapt.dora


def files(run, tmp_path, lora=None):
    return nomoat.export(adapted(run, lora or LoRA(4, 6.0)), "peft", tmp_path / "adapter")


def test_it_comes_back_as_it_was(base, tmp_path):
    _, _, run = base
    first = adapted(run, LoRA(3, 5.0, ("qkv", "down"), dora=True))
    again = nomoat.import_model(nomoat.export(first, "peft", tmp_path / "out"), name="back", base=run)
    assert again.recipe.adapt == LoRA(3, 5.0, ("down", "qkv"), dora=True)
    one, other = load(first).kept(), load(again).kept()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor)
    assert "back" in again.name and again.status == "done"
    assert run.name in (again.path / "card.md").read_text()
    assert again.read_json("ledger.json")["format"] == "PEFT"


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_other_programs_get_it_merged(form, base, tmp_path):
    _, _, run = base
    ours = adapted(run, LoRA(4, dora=True))
    out = nomoat.export(ours, form, tmp_path / f"out{'.gguf' if form == 'gguf' else ''}")
    near(logits_of(nomoat.import_model(out)), logits_of(ours))


def changed(folder, **fields):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}), ("bias", "all"), ("lora_bias", True), ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 2]]), ("trainable_token_indices", [3]), ("use_qalora", True), ("r", 0),
        ("r", "4"), ("lora_alpha", -1), ("use_dora", "yes"), ("some_new_thing", {"on": True}),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(field, value, base, tmp_path):
    folder = files(base[2], tmp_path)
    changed(folder, **{field: value})
    with pytest.raises(DataError, match=rf"adapter_config.json.*`{field}`"):
        nomoat.import_model(folder, base=base[2])
    assert len(nomoat.runs()) == 2


def tensors_changed(folder, change, metadata=None):
    found = load_file(folder / "adapter_model.safetensors")
    change(found)
    save_file(found, folder / "adapter_model.safetensors", metadata)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop(FIRST), "lacks `model.layers.0.self_attn.q_proj.lora_A.weight`"),
        (lambda found: found.update({FIRST: torch.zeros(4, 31)}), r"is \(4, 31\).*llama.* asks for \(4, 32\).*another"),
        (lambda found: found.update({FIRST: torch.full((4, 32), torch.nan)}), "no number.*damaged"),
        (lambda found: found.update({FIRST: torch.zeros(4, 32, dtype=torch.int32)}), "cannot be honoured"),
        (lambda found: found.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}), "lm_head.*no part"),
        (lambda found: found.update({FIRST.replace("layers.0", "layers.7"): torch.zeros(4, 32)}), "layers.7.*no such"),
        (lambda found: found.update({FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}),
         "no DoRA"),
        (lambda found: found.clear(), "adapts no layer"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(change, words, base, tmp_path):
    folder = files(base[2], tmp_path)
    tensors_changed(folder, change)
    with pytest.raises(DataError, match=words):
        nomoat.import_model(folder, base=base[2])
    assert len(nomoat.runs()) == 2


def test_a_damaged_file_and_a_missing_one(base, tmp_path):
    folder = files(base[2], tmp_path)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for piece in (whole[: len(whole) // 2], whole[:4], b""):
        (folder / "adapter_model.safetensors").write_bytes(piece)
        with pytest.raises(CheckpointError, match="no safetensors file"):
            nomoat.import_model(folder, base=base[2])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match="safetensors alone"):
        nomoat.import_model(folder, base=base[2])
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        nomoat.import_model(folder, base=base[2])


def test_another_base_is_refused_with_both_named(base, tmp_path):
    _, _, run = base
    folder = files(run, tmp_path)
    other = theirs("llama", seed=5)
    other.save_pretrained(tmp_path / "other")
    other = import_model(tmp_path / "other")
    with pytest.raises(DataError, match=f"is an adapter for {run.name} .*{other.name} holds other weights"):
        nomoat.import_model(folder, base=other)
    for name in ("gpt2", "llama-tied"):  # another architecture, other shapes: PEFT's own files tell no hash
        theirs(name).save_pretrained(tmp_path / name)
        tensors_changed(folder, lambda found: None)
        wrong = import_model(tmp_path / name)
        with pytest.raises(DataError, match=f"{wrong.name}.*(was made for|another base)"):
            nomoat.import_model(folder, base=wrong)


def test_how_it_is_asked_for_wrongly(base, tmp_path):
    _, _, run = base
    folder = files(run, tmp_path)
    with pytest.raises(ConfigError, match=r"is an adapter.*--base RUN"):
        nomoat.import_model(folder)
    with pytest.raises(ConfigError, match="nothing of this model can be packed"):
        nomoat.import_model(folder, dtype="q8", base=run)
    with pytest.raises(ConfigError, match=r"is no adapter.*leave --base out"):
        nomoat.import_model(tmp_path / "llama", base=run)
    ours = nomoat.import_model(folder, base=run)
    with pytest.raises(ConfigError, match="adapted already"):
        nomoat.import_model(folder, base=ours)
    with pytest.raises(ConfigError, match=r"no adapted model.*--to hf"):
        nomoat.export(run, "peft", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_commands(base, tmp_path, capfd):
    _, _, run = base
    ours = adapted(run, LoRA(2))
    assert main(["export", ours.name, "--to", "peft", "--output", str(tmp_path / "out"), "--json"]) == 0
    assert main(["import", str(tmp_path / "out"), "--base", run.name, "--name", "again", "--json"]) == 0
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    near(logits_of(Run.open(said["run"])), logits_of(ours))
    assert main(["import", str(tmp_path / "out")]) == 2
    assert "--base RUN" in capfd.readouterr().err


def test_beside_packed_weights(base, tmp_path):
    packed = nomoat.import_model(tmp_path / "llama", dtype="q8")
    ours = adapted(packed, LoRA(4))
    again = nomoat.import_model(nomoat.export(ours, "peft", tmp_path / "out"), base=packed)
    near(logits_of(again), logits_of(ours))
    assert len(adapted_layers(load(again))) == 8
    shutil.rmtree(packed.path)
    with pytest.raises(nomoat.core.errors.RunError, match="there is no run"):
        load(again)


@pytest.mark.parametrize("base", ["mamba2"], indirect=True)
def test_what_peft_would_refuse_is_not_written(base, tmp_path):
    with pytest.raises(ConfigError, match=r"mixer.out_proj.*targets=\('qkv',\)"):
        nomoat.export(adapted(base[2], LoRA(2)), "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


assert set(NAMES) <= set(MODELS)
