"""Chat templates in the published formats, each with the special tokens that it needs, and a tokenizer to read them.

Written here from the formats as their makers describe them (ChatML; Meta's Llama 3 page; Qwen2.5's tools; Zephyr's and
Mistral's model cards), not copied from checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Year: " ~ date_string ~ "\n\n" ~ ns.system ~ "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("one tool at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + "}<|eot_id|>" }}
    {%- elif message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Qwen.' }}{%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('after the optional system message, roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{% if loop.first and system is defined %}"
    "{{ ' [INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Format:
    """A template, its special tokens, those that end a text, and how its tokenizer splits (None: as GPT-2)."""

    template: str | None
    special: tuple[str, ...]
    stops: tuple[str, ...]
    bos: str | None = None
    tools: bool = False
    pattern: str | None = None

    @property
    def eos(self):
        return self.stops[0]


FORMATS = {
    "smollm2": Format(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<|im_end|>",), "<|im_start|>"),
    "llama3": Format(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>", "<|end_of_text|>"),
        "<|begin_of_text|>",
        tools=True,
        pattern=LLAMA3_PATTERN,
    ),
    "qwen2.5": Format(
        QWEN25, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<|im_end|>",), None, True, LLAMA3_PATTERN
    ),
    "zephyr": Format(ZEPHYR, ("<unk>", "<s>", "</s>"), ("</s>",), "<s>"),
    "mistral": Format(MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), ("</s>",), "<s>"),
    "own": Format(None, ("<|endoftext|>",), ("<|endoftext|>",), "<|endoftext|>"),
}
TEXT = (
    "the cat sat on the mat. What is 2 + 2? It is four.\n\nassistant user system User: Assistant: tool_call arguments "
    'name get_weather {"city": "Paris"} <|im_ end|> im_start im_end INST >>> x = [1, 2] </s> tools\n\n\nYear: 2026 '
)


class Marking:
    """A byte-pair tokenizer of `tokenizers` with some special tokens."""

    def __init__(self, special, stops, pattern=None):
        def built():
            made = tokenizers.Tokenizer(tokenizers.models.BPE())
            parts = tokenizers.pre_tokenizers
            split = [] if pattern is None else [parts.Split(tokenizers.Regex(pattern), "isolated")]
            made.pre_tokenizer = parts.Sequence([*split, parts.ByteLevel(False, use_regex=pattern is None)])
            made.decoder = tokenizers.decoders.ByteLevel()
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=500,
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
                special_tokens=[*special],
            )
            made.train_from_iterator([TEXT] * 4, trainer)
            return made

        self.marked, self.plain = built(), built()
        self.plain.encode_special_tokens = True
        self.special = {word: self.marked.token_to_id(word) for word in special}
        self.stops = tuple(self.special[word] for word in stops)

    def encode(self, text):
        return self.plain.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text):
        return self.marked.encode(text, add_special_tokens=False).ids

    def shown(self, ids):
        """The text, special tokens as they are spelled."""
        return self.marked.decode(ids, skip_special_tokens=False)
