"""Several adapters of one base at once: each row is what it would be alone, and no beginning is shared among them."""

from __future__ import annotations

import copy

import pytest
import torch
from listening import Heard, hear
from test_lora import MIXERS, model, stirred
from torch.testing import assert_close
from toys import Chain

from nomoat.core import checkpoint
from nomoat.core.errors import CheckpointError, ConfigError, RunError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run
from nomoat.core.types import Ports
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.families.lm import LM
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone
from nomoat.nn.lora import LoRA, merged
from nomoat.nn.native import quickest, why_not
from nomoat.nn.several import together
from nomoat.sampling.tokens import SamplingOptions
from nomoat.serve.ask import Ask
from nomoat.serve.engine import Engine

LORAS = (LoRA(4, 12.0), LoRA(2, 4.0, ("out", "up")), LoRA(3, dora=True))


def family_of(mixers="attention", dialect=dialects.OURS, bits=16):
    """Base and adapters as one model, and each as a model of its own: base last, so that -1 finds it."""
    base = model(mixers, dialect, bits).eval().requires_grad_(False)
    adapted = [stirred(lora.apply(copy.deepcopy(base)), seed) for seed, lora in enumerate(LORAS)]
    alone = [merged(copy.deepcopy(each)).requires_grad_(False) for each in adapted]
    return together(copy.deepcopy(base), adapted), [*alone, base]


@pytest.mark.parametrize("dialect", [dialects.OURS, dialects.GPT2], ids=["ours", "gpt2"])
@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_each_row_is_what_it_would_be_alone(mixers, dialect):
    whole, alone = family_of(mixers, dialect)
    rows = [0, -1, 2, 1, 0, 2, -1]
    batch = whole.example(len(rows))
    found = whole.score({**batch, "adapter": torch.tensor(rows)})
    short = {name: tensor[:, :-1] for name, tensor in batch.items()}
    encoded = whole.encode({**short, "adapter": torch.tensor(rows)})
    for place, adapter in enumerate(rows):
        one = {name: tensor[place : place + 1] for name, tensor in batch.items()}
        assert_close(found[place], alone[adapter].score(one)[0], rtol=1e-4, atol=1e-4)
        one = {name: tensor[place : place + 1] for name, tensor in short.items()}
        assert_close(encoded[place], alone[adapter].encode(one)[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(whole.score(batch), whole.score({**batch, "adapter": torch.tensor([-1] * len(rows))}))
    assert (found[0] - alone[-1].score(batch)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_a_slot_is_read_with_its_adapter(mixers):
    whole, alone = family_of(mixers)
    rows = [1, -1, 2, 0]
    tokens_BL = whole.example(len(rows))["tokens"][:, :9]
    memory = whole.memory(5, 12)
    memory.adapters[:] = [*rows, -1]
    pieces = [whole.decode(tokens_BL[:, :5], memory, range(4)), whole.decode(tokens_BL[:, 5:], memory, range(4))]
    memory.fork(2, 4)
    assert memory.adapters == [1, -1, 2, 0, 2]
    for place, adapter in enumerate(rows):
        own = alone[adapter]
        wanted = own.decode(tokens_BL[place : place + 1], own.memory(1, 12), [0])[0]
        assert_close(torch.cat(pieces, 1)[place], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_no_adapter_is_refused():
    whole, alone = family_of()
    batch = whole.example(2)
    for rows in ([0, 3], [-2, 0], [0], [0, 1, 2]):
        with pytest.raises(ConfigError, match=r"no adapters of 2 rows.*the stack has 3"):
            whole.score({**batch, "adapter": torch.tensor(rows)})
    with pytest.raises(ConfigError, match="no low-rank adapters"):
        alone[0].stack(torch.zeros(2, 3, 32), ports=Ports(adapter_B=torch.tensor([0, 0])))
    assert "several adapters" in why_not(whole) and quickest(whole) is whole


def greedy(tokens, adapter=-1, n=1):
    return Ask(tuple(tokens), SamplingOptions(temperature=0, max_tokens=6), n=n, adapter=adapter)


def longer(mixers):
    """The same with room for a prompt."""
    base = LM(33, 64, Backbone(width=32, depth=2, heads=2, mixers=mixers)).build({})
    torch.manual_seed(3)
    base = stirred(base, 3).eval().requires_grad_(False)
    adapted = [stirred(lora.apply(copy.deepcopy(base)), seed) for seed, lora in enumerate(LORAS)]
    alone = [merged(copy.deepcopy(each)).requires_grad_(False) for each in adapted]
    return together(copy.deepcopy(base), adapted), [*alone, base]


def written_alone(own, ask):
    """The likeliest tokens after a prompt, and how far ahead of the next each was."""
    tokens, margins = list(ask.tokens), []
    for _ in range(ask.options.max_tokens):
        logits = own.decode(torch.tensor([tokens]), own.memory(1, 64), [0])[0, -1]
        best = logits.topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return tokens[len(ask.tokens) :], min(margins)


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_the_engine_writes_for_all_of_them_at_once(mixers):
    whole, alone = longer(mixers)
    prompt = torch.randint(33, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    asks = [
        greedy(prompt[: 20 + number], adapter, n=1 + number % 2) for number in range(4) for adapter in (0, -1, 2, 1)
    ]
    with Engine(whole, slots=6) as engine:
        heard = [Heard(ask.n) for ask in asks]
        for ask, ear in zip(asks, heard, strict=True):
            engine.submit(ask, ear)
        for ear in heard:
            ear.wait()
    different = set()
    for ask, ear in zip(asks, heard, strict=True):
        wanted, margin = written_alone(alone[ask.adapter], ask)
        for choice in range(ask.n):
            assert ear.tokens[choice] == wanted or margin < 1e-3
        different.add(tuple(wanted))
    assert len(different) > 3


@pytest.mark.parametrize("mixers", MIXERS[:2], ids=str)
def test_a_beginning_is_never_shared_between_adapters(mixers):
    whole, alone = longer(mixers)
    prompt = torch.randint(33, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with Engine(whole, slots=6) as engine:
        for adapter in (-1, 0, 1, 2):
            heard = hear(engine, greedy(prompt, adapter))
            assert engine.stats().prefix_tokens_reused == 0
            wanted, margin = written_alone(alone[adapter], greedy(prompt))
            assert heard.tokens[0] == wanted or margin < 1e-3
        for times, adapter in enumerate((0, -1, 2), 1):  # its own is
            hear(engine, greedy(prompt, adapter))
            assert engine.stats().prefix_tokens_reused >= 25 * times


@pytest.fixture
def served(runs_root):
    """The run of a base that spells in bytes, and two adapted from it."""
    torch.manual_seed(0)
    tokenizer = ByteTokenizer()
    family = stirred(LM(tokenizer.vocab_size, 64, Backbone(width=32, depth=1, heads=2)).build({}))
    recipe = Recipe("A base.", family.config, Chain(), "1steps", 1)
    base = Run.create(None, "base", recipe)
    runs = [base]
    checkpoint.save(base.checkpoints, 0, {"weights": family.state_dict()}, {"step": 0})
    for number in (1, 2):
        adapted = Recipe("Adapted.", family.config, Chain(), "1steps", 1, start=Ref(base.name), adapt=LORAS[number])
        run = Run.create(None, f"adapted-{number}", adapted)
        own = stirred(run.recipe.build(), number)
        checkpoint.save(run.checkpoints, 0, {"weights": own.kept()}, {"step": 0})
        runs.append(run)
    for run in runs:
        tokenizer.save(run.path / "tokenizer.json")
    return runs


def test_runs_of_one_base_are_served_with_one_engine(served):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    import threading

    from serving import until

    from nomoat.core.run import load
    from nomoat.serve.app import Server
    from nomoat.serve.models import Models, Settings
    from nomoat.serve.start import Listening

    told = []
    listening = Listening(Server(Models({run.name: run for run in served}, Settings(port=0))), told.append)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    models = listening.server.models
    until(lambda: told and (models.ready or listening.fault))
    try:
        assert len({id(one.engine) for one in models.loaded}) == 1 and len(models.loaded) == 3
        answers = {}
        read = torch.tensor([[*ByteTokenizer().begin, *b"hello"]])
        for run in served:
            body = {"model": run.name, "prompt": "hello", "max_tokens": 8, "temperature": 0, "logprobs": 1}
            answer = httpx.post(told[0] + "/v1/completions", json=body).json()
            assert answer["model"] == run.name
            answers[run.name] = answer["choices"][0]["logprobs"]["token_logprobs"][0]
            own = load(run, merged=True)
            logits = own.decode(read, own.memory(1, 9), [0])[0, -1]
            assert answers[run.name] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-3)
            found = httpx.post(told[0] + "/v1/embeddings", json={"model": run.name, "input": "hello"}).json()
            tokens = {"tokens": read, "mask": torch.ones(read.shape, dtype=torch.bool)}
            wanted = torch.nn.functional.normalize(own.encode(tokens), dim=1)[0]
            assert_close(torch.tensor(found["data"][0]["embedding"]), wanted, rtol=1e-3, atol=1e-3)
        assert len(set(answers.values())) == 3
        page = httpx.get(told[0] + "/metrics").text
        assert page.count("nomoat_prompt_tokens_total{") == 1  # of the engine, not of each name
    finally:
        listening.should_exit = True
        thread.join(10)


def test_idle_ones_are_freed_together(served):
    pytest.importorskip("fastapi")
    import asyncio

    from nomoat.serve.models import Models, Settings

    models = Models({run.name: run for run in served}, Settings(idle_minutes=0.2 / 60))

    async def wait():
        freeing = asyncio.create_task(models.free_idle())
        first = await models.get(served[1].name)
        assert {one.name for one in models.loaded} == {run.name for run in served}
        assert (await models.get(served[2].name)).engine is first.engine
        for _ in range(200):
            await asyncio.sleep(0.02)
            if not models.loaded:
                break
        freeing.cancel()
        assert not models.loaded
        assert (await models.get(served[0].name)).adapter == -1

    asyncio.run(wait())
    models.close()


def test_alone_it_is_merged(served):
    pytest.importorskip("fastapi")
    from nomoat.serve.models import Models, Settings, read
    from nomoat.serve.sharing import groups

    assert groups({"one": served[1]}) == {} == groups({"base": served[0]})
    assert set(groups({run.name: run for run in served[1:]})) == {run.name for run in served[1:]}
    found = read(served[1], Settings(bits=32))
    try:
        assert found.adapter == -1 and not found.family.shared and not found.family.stack.rules.adapters
    finally:
        found.close()
    Models({"one": served[1]}, Settings()).close()


def test_of_a_base_that_has_changed_they_are_refused(served):
    from nomoat.serve.sharing import read_group

    base = served[0]
    held = checkpoint.read(checkpoint.newest(base.checkpoints).path, "weights")
    checkpoint.save(base.checkpoints, 1, {"weights": {k: v + 1 for k, v in held.items()}}, {"step": 1})
    with pytest.raises(CheckpointError, match="no longer holds"):
        read_group(served)
    recipe = Recipe("Late.", base.recipe.family, Chain(), "1steps", 1, start=Ref(base.name), adapt=LORAS[0])
    late = Run.create(None, "late", recipe)
    with pytest.raises(RunError, match="different states of one run"):
        read_group([*served, late])
