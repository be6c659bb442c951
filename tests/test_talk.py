"""A conversation: only what is new is read, what no longer fits is forgotten, and what fails was never said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conversations import FORMATS, Marking
from markov import Limits, Slots

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.data.chat import Chat
from nomoat.data.tokenizer import UNSPELLING
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import MambaConfig
from nomoat.sampling.tokens import SamplingOptions
from nomoat.talk import Talk

FORM = FORMATS["smollm2"]
GREEDY = SamplingOptions(temperature=0, max_tokens=24)


class Speller(Marking):
    """A tokenizer with the bytes of its tokens."""

    def token_bytes(self, token):
        letters = self.plain.id_to_token(token) or ""
        return b"" if token in self.special.values() else bytes(UNSPELLING[letter] for letter in letters)


TOKENIZER = Speller(FORM.special, FORM.stops)
START, END = (TOKENIZER.special[word] for word in ("<|im_start|>", "<|im_end|>"))
HEAD = TOKENIZER.encode("assistant\n")


class Replying:
    """Answers `Reply N.` where N is how many turns it has been shown, and ends; notes how many tokens it reads."""

    def __init__(self, context_length=400, tokenizer=TOKENIZER, reply="Reply {}."):
        self.config, self.tokenizer, self.reply = Limits(context_length, 500), tokenizer, reply
        self.read, self.memories, self.at_each = [], 0, None

    def memory(self, slots, length):
        assert length <= self.config.context_length
        self.memories += 1
        return Slots(slots, length)

    def decode(self, tokens_BL, memory, slots, last=False):
        self.read.append(tokens_BL.shape[1])
        row = memory.rows[slots[0]]
        row += tokens_BL[0].tolist()
        assert len(row) <= memory.length
        if self.at_each:
            self.at_each(len(self.read))
        begun = len(row) - row[::-1].index(START)
        said = row[begun + len(HEAD) :]
        wanted = [*self.tokenizer.encode(self.reply.format(row.count(START) // 2)), END]
        logits_BLV = torch.full((*tokens_BL.shape, 500), -9.0)
        logits_BLV[:, -1, wanted[min(len(said), len(wanted) - 1)]] = 9.0
        return logits_BLV[:, -1:] if last else logits_BLV


def talking(model=None, options=GREEDY, system=None):
    return Talk(model or Replying(), TOKENIZER, Chat(FORM.template, FORM.bos, FORM.eos), options, system)


def test_what_was_said_is_kept_and_only_what_is_new_is_read():
    talk = talking(system="Be brief.")
    assert "".join(talk.say("Hello")) == "Reply 1."
    first = talk.answers[0]
    assert (first.reason, first.text, first.reused, first.dropped) == ("end", "Reply 1.", 0, 0)
    before = len(talk.model.read)
    assert "".join(talk.say("And now?")) == "Reply 2."
    second = talk.answers[1]
    assert second.reused == first.read + first.written - 1  # its end was drawn but not read
    assert talk.model.read[before] == second.read
    assert second.read < first.read
    assert talk.model.memories == 1
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert second.tokens_per_second > 0
    assert second.first_seconds > 0


def test_a_message_that_was_changed_is_read_from_where_it_differs():
    talk = talking()
    for text in ("one", "two", "three"):
        assert [*talk.say(text)]
    talk.messages[2]["content"] = "other"
    assert [*talk.say("four")]
    assert 0 < talk.answers[-1].reused < talk.answers[-2].reused
    talk.tell("Speak up.")
    assert [*talk.say("five")]
    assert talk.answers[-1].reused < 10
    talk.tell(None)
    assert talk.messages[0]["role"] == "user"


MIXERS = {"attention": "attention", "mamba": "mamba", "hybrid": ("mamba", "attention")}


@pytest.mark.parametrize("mixers", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_a_model_that_starts_from_nothing(mixers, temperature):
    torch.manual_seed(0)
    config = MambaConfig(state_width=5, head_width=4, groups=1, chunk=8)
    backbone = Backbone(width=16, depth=2, heads=2, mixers=mixers, mamba=config)
    model = LM(500, 512, backbone).build({}).double().eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.requires_grad_(False)
    options = SamplingOptions(temperature=temperature, max_tokens=20, seed=4)
    talk = talking(model, options)
    for text in ("Hello", "the cat", "sat on", "the mat."):
        fresh = talking(model, options)
        fresh.messages = [dict(message) for message in talk.messages]
        said = "".join(talk.say(text))
        assert "".join(fresh.say(text)) == said
        assert fresh.answers[0].reused == 0
    assert talk.answers[-1].reused > 0


def test_the_same_seed_says_the_same_and_another_attempt_something_else():
    torch.manual_seed(0)
    model = LM(500, 256, Backbone(width=16, depth=1, heads=2)).build({}).eval().requires_grad_(False)
    options = SamplingOptions(max_tokens=12, seed=1)
    said = ["".join(talking(model, options).say("Hello", attempt)) for attempt in (0, 0, 1)]
    assert said[0] == said[1] != said[2]
    assert "".join(talking(model, replace(options, seed=2)).say("Hello")) != said[0]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full():
    talk = talking(Replying(110), system="Be brief.")
    for number in range(12):
        before = len(talk.messages)
        assert [*talk.say(f"message number {number}")]
        answer = talk.answers[-1]
        assert talk.messages[0] == {"role": "system", "content": "Be brief."}
        assert talk.messages[1]["role"] == "user"
        assert len(talk.messages) == before + 2 - answer.dropped
        assert answer.reused + answer.read + answer.written <= 110
    assert sum(answer.dropped for answer in talk.answers) > 10
    assert talk.messages[-2]["content"] == "message number 11"


def test_a_message_that_can_never_fit_was_never_said():
    talk = talking(Replying(110))
    assert [*talk.say("Hello")]
    before = [*talk.messages]
    with pytest.raises(ConfigError, match="too long"):
        [*talk.say("word " * 200)]
    assert talk.messages == before
    assert "".join(talk.say("Hello again")) == "Reply 2."


def test_what_the_template_refuses_was_never_said():
    form = FORMATS["mistral"]
    talk = Talk(Replying(), Speller(form.special, form.stops), Chat(form.template, form.bos, form.eos), GREEDY)
    talk.messages = [{"role": "user", "content": "one"}]
    with pytest.raises(ConfigError, match="alternate"):
        [*talk.say("two")]
    assert talk.messages == [{"role": "user", "content": "one"}]


def test_an_answer_can_be_stopped_and_what_was_said_of_it_stays():
    talk = talking(Replying(reply="one two three four five six"))
    pieces = []
    for piece in talk.say("Hello"):
        pieces.append(piece)
        if len(pieces) == 3:
            talk.stop()
    assert talk.answers[-1].reason == "cancelled"
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(pieces).strip()}
    assert len(pieces) == 3
    assert "".join(talk.say("Go on")).startswith("one two three four")
    assert talk.answers[-1].reused > talk.answers[0].read


def test_a_prompt_can_be_stopped_while_it_is_read(monkeypatch):
    monkeypatch.setattr("nomoat.talk.CHUNK", 8)
    talk = talking()
    talk.model.at_each = lambda count: talk.stop() if count == 2 else None
    assert [*talk.say("the cat sat on the mat")] == []
    assert talk.answers[-1].reason == "cancelled"
    assert talk.model.read == [8, 8]
    talk.model.at_each = None
    assert "".join(talk.say("the cat")) == "Reply 2."


def test_what_fails_was_never_said_and_the_memory_starts_anew():
    talk = talking()
    assert [*talk.say("Hello")]

    def fail(count):
        raise NomoatError("the model broke")

    talk.model.at_each = fail
    with pytest.raises(NomoatError, match="broke"):
        [*talk.say("again")]
    talk.model.at_each = None
    assert len(talk.messages) == 2
    assert "".join(talk.say("again")) == "Reply 2."
    assert talk.answers[-1].reused == 0
    left = talk.say("half")
    next(left)
    left.close()
    assert len(talk.messages) == 4


def test_an_answer_ends_at_a_stop_string_at_its_length_and_at_the_end_of_the_context():
    long = "one two three four five six seven eight"
    talk = talking(Replying(reply=long), replace(GREEDY, stop=(" four",)))
    assert "".join(talk.say("Hello")) == "one two three"
    assert talk.answers[-1].reason == "stop"
    talk = talking(Replying(reply=long), replace(GREEDY, max_tokens=5))
    assert long.startswith("".join(talk.say("Hello")))
    assert (talk.answers[-1].reason, talk.answers[-1].written) == ("length", 5)
    talk = talking(Replying(48, reply=long * 9), replace(GREEDY, max_tokens=500))
    assert [*talk.say("Hi")]
    answer = talk.answers[-1]
    assert answer.reason == "length"
    assert answer.read + answer.written == 48


def test_undo_takes_the_last_message_and_its_answer_back():
    talk = talking(system="s")
    with pytest.raises(ConfigError, match="nothing to take back"):
        talk.undo()
    assert [*talk.say("one")]
    assert [*talk.say("two")]
    assert talk.undo() == "two"
    assert [message["content"] for message in talk.messages] == ["s", "one", "Reply 1."]
    assert "".join(talk.say("three")) == "Reply 2."
    assert "".join(talk.say(None, 1)) == "Reply 2."
    assert [message["content"] for message in talk.messages[-2:]] == ["three", "Reply 2."]
    talk.model.at_each = lambda count: 1 / 0
    with pytest.raises(ZeroDivisionError):
        [*talk.say(None)]
    assert talk.messages[-1]["content"] == "Reply 2."


def test_characters_of_several_tokens_come_whole_and_leading_space_goes():
    talk = talking(Replying(reply="  \n 😀ß!"))
    pieces = [*talk.say("Hello")]
    assert "".join(pieces) == "😀ß!"
    assert "�" not in "".join(pieces)
    assert talk.messages[-1]["content"] == "😀ß!"


def test_the_memory_grows_with_the_conversation(monkeypatch):
    monkeypatch.setattr("nomoat.talk.ROOM", 64)
    talk = talking(Replying(4000))
    for number in range(30):
        assert "".join(talk.say("the cat sat on the mat")) == f"Reply {number + 1}."
    assert 3 <= talk.model.memories <= 6


def test_a_model_without_a_template_ends_its_answer_where_the_user_would_speak():
    form = FORMATS["own"]

    class Plain(Replying):
        def decode(self, tokens_BL, memory, slots, last=False):
            row = memory.rows[0]
            row += tokens_BL[0].tolist()
            text = self.tokenizer.shown(row).rpartition("Assistant:")[2]
            wanted = self.tokenizer.encode(" I am.\n\nUser: and you?")
            logits_BLV = torch.full((*tokens_BL.shape, 500), -9.0)
            logits_BLV[:, -1, wanted[len(self.tokenizer.encode(text))]] = 9.0
            return logits_BLV[:, -1:] if last else logits_BLV

    speller = Speller(form.special, form.stops)
    talk = Talk(Plain(400, speller), speller, Chat(), GREEDY)
    assert "".join(talk.say("Are you?")).strip() == "I am."
    assert talk.answers[-1].reason == "stop"
    assert talk.messages[-1]["content"] == "I am."
