"""Distilling: losses by hand, the cut vocabulary, the whole way on tiny models, what is stored, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from oracle import chatty, completion, oracle

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.family import Frozen
from nomoat.core.run import Run, load
from nomoat.data.asked import Asking, write_answers
from nomoat.data.chat import Chat
from nomoat.data.cut import cut, first_tokens
from nomoat.data.foreign_tokenizer import ForeignTokenizer
from nomoat.data.taught import Taught, boundaries
from nomoat.data.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from nomoat.distilling import Manner, distil, measured, read_prompts
from nomoat.families.distil import Distil, FeatureDistil
from nomoat.nn.divergence import LEAST, classes, divergence, sorted_distance
from nomoat.students import sized

SMALL = Manner(max_tokens=24, heat=1.0)
TEXT = "The dog ran to the river. The king gave the dog an apple. A bird sat in the snow of the garden. " * 20


def two(seed=0, rows=5, tokens=11):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, tokens, generator=generator).mul(2).log_softmax(-1) for _ in range(2))


def test_divergences_are_those_of_the_definitions():
    student, teacher = two()
    p, q = teacher.exp(), student.exp()
    torch.testing.assert_close(divergence(student, teacher, 0.0), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(divergence(student, teacher, 1.0), (q * (q / p).log()).sum(1))
    for beta in (0.1, 0.5, 0.9):
        m = beta * p + (1 - beta) * q
        by_hand = beta * (p * (p / m).log()).sum(1) + (1 - beta) * (q * (q / m).log()).sum(1)
        torch.testing.assert_close(divergence(student, teacher, beta), by_hand)
    assert divergence(teacher, teacher, 0.5).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_gkd_of_trl(beta):
    gkd = pytest.importorskip("trl.experimental.gkd", reason="trl is not installed")
    student, teacher = two()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    ours = divergence(student, teacher, beta).sum()
    assert abs(ours - theirs) <= 1e-5 * abs(theirs)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_few_classes_with_their_rest_are_never_further_apart_than_all(beta):
    student, teacher = two()
    whole, before = divergence(student, teacher, beta), torch.zeros(5)
    for k in (2, 5, 10):
        found = teacher.topk(k)
        part = divergence(*classes(student, found.indices, found.values), beta)
        assert (part <= whole + 1e-5).all() and (part >= before - 1e-5).all()
        before = part
    torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-4)


def test_an_unused_place_counts_for_nothing():
    student, teacher = two()
    found = teacher.topk(4)
    padded = torch.cat([found.values, torch.full((5, 2), -math.inf)], 1)
    ids = torch.cat([found.indices, torch.zeros(5, 2, dtype=torch.int64)], 1)
    expected = divergence(*classes(student, found.indices, found.values), 0.0)
    torch.testing.assert_close(divergence(*classes(student, ids, padded), 0.0), expected, rtol=1e-4, atol=1e-5)
    assert LEAST < -20


def test_sorted_distance_does_not_ask_which_token_it_is():
    student, teacher = two()
    shuffled = teacher[:, torch.randperm(11, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(sorted_distance(student, teacher), sorted_distance(student, shuffled))
    assert sorted_distance(shuffled, teacher).abs().max() < 1e-6
    assert (sorted_distance(student, teacher) > 0.05).all()


@pytest.mark.parametrize("loss", ["forward", "reverse", "jsd"])
def test_a_teacher_that_reads_along_pulls_its_student(loss):
    torch.manual_seed(0)
    teacher = Distil.tiny().student.build({})
    for weight in teacher.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    family = Distil(Distil.tiny().student, loss).build({"teacher": Frozen(teacher)})
    assert not [name for name, _ in family.named_parameters() if "teacher" in name]
    batch = family.student.example(8)
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        made = family.loss(batch)
        (made.total / made.count).backward()
        optimizer.step()
        losses.append((made.total / made.count).item())
    assert losses[-1] < losses[0] / 4


def test_a_teacher_is_heard_at_the_heat_at_which_it_writes():
    torch.manual_seed(0)
    teacher, student = (Distil.tiny().student.build({}) for _ in range(2))
    for weight in teacher.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    along = Distil(student.config, temperature=2.0, heat=0.25).build({"teacher": Frozen(teacher)})
    stored = Distil(student.config, temperature=2.0, heat=0.25).build({})
    stored.load_state_dict(along.state_dict(), strict=False)
    batch = student.example(4)
    with torch.no_grad():
        logits_BLV = torch.nn.functional.linear(teacher.trunk(batch), teacher.table)
    logp_BLV = (logits_BLV / (2.0 * 0.25)).log_softmax(-1)
    logp_BLV = torch.cat([torch.full_like(logp_BLV[:, :1], -math.inf), logp_BLV], 1)
    ids_BLV = torch.arange(logp_BLV.shape[2]).expand_as(logp_BLV)
    written = stored.loss({**batch, "teacher_ids": ids_BLV, "teacher_logp": logp_BLV})
    torch.testing.assert_close(along.loss(batch).total, written.total, rtol=1e-4, atol=1e-4)
    assert Manner(heat=0.0).warmth > 0
    with pytest.raises(ConfigError, match="heat"):
        Distil(heat=0.0)


def test_text_is_learned_where_the_teacher_says_nothing():
    family = Distil.tiny().build({})
    batch = family.example(2)
    batch["teacher_logp"][:] = -math.inf
    loss = family.loss(batch)
    torch.testing.assert_close(loss.total, family.student.loss(batch).total)


def test_features_move_the_students_layer_and_its_map_is_kept_apart():
    family = FeatureDistil.tiny().build({})
    assert {name for name in family.kept() if name.startswith("wrapping.")} == {
        "wrapping.0.weight",
        "wrapping.1.weight",
    }
    with torch.no_grad():
        family.maps[0].weight.fill_(0.5)
    other = FeatureDistil.tiny().build({})
    other.take(family.kept())
    batch = family.example(2)
    assert torch.equal(other.loss(batch).total, family.loss(batch).total)


def foreign(size=400):
    return ForeignTokenizer(json.loads(train_bpe([TEXT], size).to_json()))


@settings(max_examples=60, deadline=None)
@given(some.text(max_size=60))
def test_a_cut_vocabulary_spells_every_text(text):
    whole = foreign()
    small = ForeignTokenizer(cut(whole, [TEXT], 300))
    text = text.encode("utf-8", "ignore").decode()
    assert small.decode_bytes(small.encode(text)) == text.encode()


def test_a_text_whose_tokens_all_stay_is_cut_as_before():
    whole = foreign()
    small = ForeignTokenizer(cut(whole, ["The dog ran"] * 3 + ["the king"], 300))
    assert small.vocab_size < whole.vocab_size
    for text in ("The dog ran", "the king"):
        assert [small.token_bytes(i) for i in small.encode(text)] == [whole.token_bytes(i) for i in whole.encode(text)]
    assert small.eot == small.vocab_size - 1
    with pytest.raises(ConfigError, match="no room"):
        cut(whole, [TEXT], 100)


def test_tokens_that_the_student_lacks_count_as_the_first_of_their_spelling():
    whole = foreign()
    small = ForeignTokenizer(cut(whole, ["the king"], 270))
    first = first_tokens(whole, small)
    assert first[whole.eot] == small.eot
    for token in range(whole.vocab_size - 1):
        spelled = whole.token_bytes(token)
        assert spelled.startswith(small.token_bytes(first[token])) or first[token] < 0
    assert first_tokens(small, whole) is None


def test_boundaries_begin_anew_with_each_turn():
    words = Tokenizer([b"a", b"bc"])
    assert boundaries([0, 1, 1, 2, 0, 1, 2], [False, True, True, True, False, True, True], words) == [
        (0, 0), (0, 2), (0, 4), (1, 0), (1, 2),
    ]  # fmt: skip


def test_the_space_that_a_template_puts_before_an_answer_moves_no_boundary():
    words = Tokenizer([b" The", b"The", b" king", b"\n", b"?"])
    plain = boundaries([4, 1, 2, 5], [False, True, True, True], words)
    spaced = boundaries([4, 0, 2, 5], [False, True, True, True], words)
    lined = boundaries([4, 3, 1, 2, 5], [False, True, True, True, True], words)
    assert plain == [(0, 0), (0, 3), (0, 8)]
    assert spaced[1:] == plain[1:] and spaced[0] != plain[0] and lined[1:] == plain


@pytest.mark.parametrize(("parameters", "vocabulary"), [(15e6, 8192), (60_000, 257), (3e6, 4096)])
def test_a_size_is_what_is_read_for_a_token(parameters, vocabulary):
    config = sized(parameters, vocabulary, 128)
    read = config.backbone.parameters() + vocabulary * config.backbone.width
    assert 0.8 * parameters < read <= 1.01 * parameters


def test_a_size_below_its_output_layer_is_refused():
    with pytest.raises(ConfigError, match="too few"):
        sized(10_000, 8192, 128)


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    return chatty(tmp_path / "runs", "teacher")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"write {number}\n" for number in range(24)))
    return path


def test_a_teacher_teaches_by_text(teacher, prompts):
    run = distil(teacher, "60k", prompts, "4steps", SMALL)
    report = run.read_json("report.json")
    assert report["rows"]["teacher"] > 0 and report["rows"]["student"] > 0 and report["count"] > 0
    path = next((run.path.parent / "data").glob("answers-*/answers.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["generation"] == 1 and row["origin"]["teacher"] == teacher.name for row in rows)
    assert load(run).config.vocab_size == 257 and (run.path / "card.md").exists()
    made = json.loads((run.path / "card.json").read_text())
    assert "unknown" in json.dumps(made["data"]) or "licence" in json.dumps(made["data"])


def test_a_teacher_teaches_by_its_logits_and_stores_them_once(teacher, prompts):
    asked = Manner(by="logits", max_tokens=24, heat=1.0, k=8)
    run = distil(teacher, "60k", prompts, "60steps", asked)
    assert isinstance(run.recipe.data, Taught) and isinstance(run.recipe.family, Distil)
    batch = next(run.recipe.data.stream(None, 2, 0))
    learned = batch["mask"]
    held = batch["teacher_logp"][learned].exp().sum(1)
    assert learned.any() and (held > 0.01).all() and (held < 1.01).all()
    losses = [event["training_loss"] for event in run.metrics("step")]
    assert losses[-1] < losses[0], "the student comes nearer to what its teacher says"
    before, again = run.read_json("report.json"), measured(run, "cpu")
    assert again.rows["student"] == pytest.approx(before["rows"]["student"], rel=1e-3)


def test_stored_logits_are_the_teachers(teacher, prompts):
    run = distil(teacher, "60k", prompts, "1steps", Manner(by="logits", max_tokens=16, heat=1.0, k=300))
    rows, model = run.recipe.data.open(), load(teacher)
    ids, learn = Chat.of(teacher.path).tokens(next(rows.messages()), ByteTokenizer(), answer=False)
    logp = torch.nn.functional.linear(model.trunk({"tokens": torch.tensor([ids])}), model.table).log_softmax(-1)[0]
    for row, place in enumerate(np.flatnonzero(learn).tolist()):
        said = logp[place - 1][torch.from_numpy(rows.ids[row].astype(np.int64))]
        torch.testing.assert_close(said, torch.from_numpy(rows.logp[row].astype(np.float32)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("manner", [
    Manner(by="logits", loss="jsd", on_policy=0.5, max_tokens=12, heat=1.0),
    Manner(by="features", max_tokens=12, heat=1.0),
])  # fmt: skip
def test_a_teacher_reads_along(teacher, prompts, manner):
    run = distil(teacher, "60k", prompts, "6steps", manner)
    assert run.recipe.parts and run.status == "done" and load(run).config.vocab_size == 257


def test_a_run_goes_on_as_student(teacher, prompts):
    import nomoat

    first = distil(teacher, "60k", prompts, "3steps", SMALL)
    second = distil(teacher, first, prompts, "3steps", replace(SMALL, beside=first))
    assert second.recipe.start and "the other student" in second.read_json("report.json")["shares"]
    assert nomoat.resume(second).path == second.path


def test_what_a_killed_call_has_stored_is_not_asked_for_again(tmp_path):
    asked = [[{"role": "user", "content": f"say {number}"}] for number in range(12)]
    from nomoat.teachers import open_teacher

    with oracle() as server, open_teacher(server.where, "MIT", "none") as one:
        counts = write_answers(one, asked[:5], tmp_path / "a", Asking(at_once=2))
        assert counts == {"answers": 5} and len(server.asked) == 5
        assert write_answers(one, asked, tmp_path / "a", Asking(at_once=2)) == {"answers": 12}
        assert len(server.asked) == 12


def test_an_address_teaches_by_text_alone(tmp_path, monkeypatch, prompts):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    with oracle() as server:
        run = distil(server.where, "200k", prompts, "2steps", Manner(vocabulary=300), "MIT", "none")
        assert run.read_json("report.json")["rows"]["teacher"] is None
        with pytest.raises(ConfigError, match="weights"):
            distil(server.where, "200k", prompts, "2steps", Manner(by="logits"), "MIT", "none")
        with pytest.raises(ConfigError, match="licence"):
            distil(server.where, "200k", prompts, "2steps", SMALL)


@pytest.mark.parametrize(
    "said", ["", "no no no no no no no no no no no no no no no no no no no no no no no no no no no"]
)
def test_a_teacher_that_says_nothing_or_repeats_itself(tmp_path, monkeypatch, prompts, said):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    with oracle(lambda body: completion(said)) as server, pytest.raises(DataError, match="cannot be learned from"):
        distil(server.where, "200k", prompts, "2steps", SMALL, "MIT", "none")


def test_unrelated_tokenizers_need_the_sorted_loss(teacher, prompts, tmp_path):
    other = chatty(tmp_path / "runs", "other")
    train_bpe([TEXT], 300).save(other.path / "tokenizer.json")
    from nomoat.core import checkpoint

    recipe = replace(other.recipe, family=replace(other.recipe.family, vocab_size=300))
    fresh = Run.create(tmp_path / "runs", "bpe", recipe)
    checkpoint.save(fresh.checkpoints, 1, {"weights": recipe.build().state_dict()}, {})
    train_bpe([TEXT], 300).save(fresh.path / "tokenizer.json")
    with pytest.raises(ConfigError, match="do not go together"):
        distil(teacher, fresh, prompts, "2steps", Manner(by="logits", max_tokens=8, heat=1.0))


def test_bad_input_is_refused(teacher, prompts, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(empty)
    with pytest.raises(ConfigError, match="no file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="no way"):
        Manner(by="letters")
    with pytest.raises(ConfigError, match="no loss"):
        Distil(loss="l2")
    with pytest.raises(ConfigError, match="mixture"):
        Distil(loss="jsd", beta=1.0)
    with pytest.raises(ConfigError, match="on-policy"):
        distil(teacher, "60k", prompts, "2steps", Manner(on_policy=0.5))
    (teacher.path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        distil(teacher, "60k", prompts, "2steps", SMALL)


def test_a_budget_without_room_for_an_answer(tmp_path):
    class Slow:
        name, licence, terms = "slow", "MIT", ""

        def answer(self, *_):
            raise AssertionError("nothing is asked once the time is over")

    with pytest.raises(ConfigError, match="not one answer"):
        write_answers(Slow(), [[{"role": "user", "content": "a"}]], tmp_path / "a", Asking(seconds=0.0))
    assert Budget.parse("1s").seconds() == 1


def test_prompts_come_in_three_forms(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "one"}\n')
    talk = {"messages": [{"role": "user", "content": "three"}, {"role": "assistant", "content": "x"}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "c.txt").write_text("four\n\nfive\n")
    said = [
        [turns[-1]["content"] for turns in read_prompts(tmp_path / name)] for name in ("a.jsonl", "b.jsonl", "c.txt")
    ]
    assert said == [["one", "two"], ["three"], ["four", "five"]]
    assert ByteTokenizer().vocab_size == 257


def test_both_spellings_of_the_verb_lead_to_it(teacher, prompts, capfd):
    from nomoat.cli.entry import main

    words = [
        str(teacher.path),
        "60k",
        str(prompts),
        "--budget",
        "2steps",
        "--max-tokens",
        "12",
        "--heat",
        "1",
        "--json",
    ]
    assert main(["distill", *words]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last["status"] == "done" and (Run.open(last["run"]).path / "distil.json").exists()
    assert main(["distil", "http://127.0.0.1:9/v1#m", "60k", str(prompts), "--by", "logits"]) == 2
    assert "weights" in capfd.readouterr().err
