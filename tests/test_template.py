"""Somebody's template: it reaches nothing of Python's, ends in time and in little memory, and says what is wrong."""

from __future__ import annotations

import resource
import time

import pytest

from nomoat.core.errors import ConfigError, DataError
from nomoat.data import template as templates
from nomoat.data.template import Template

DOUBLED = "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = PART %}{% endfor %}{{ ns.s | length }}"
HOSTILE = {
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "ranges in ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "ranges left out": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "doubled by +": DOUBLED.replace("PART", "ns.s + ns.s"),
    "doubled by ~": DOUBLED.replace("PART", "ns.s ~ ns.s"),
    "doubled by join": DOUBLED.replace("PART", "[ns.s, ns.s] | join"),
    "doubled by a method": DOUBLED.replace("PART", "''.join([ns.s, ns.s])"),
    "doubled by replace": DOUBLED.replace("PART", "ns.s | replace('a', ns.s)"),
    "doubled by replace, a method": DOUBLED.replace("PART", "ns.s.replace('a', ns.s)"),
    "doubled by a block": "{% set a = 'x' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 99,
    "doubled by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set a = 'x' %}" + "{% set a = m(a) %}" * 99,
    "doubled lists": DOUBLED.replace("PART", "[ns.s, ns.s]"),
    "doubled lists, shown": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "doubled lists, as JSON": "{% set a = [1] %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a | tojson }}",
    "doubled tuples": "{% set a = (1, 2) %}" + "{% set a = (a, a) %}" * 60 + "{{ a ~ '' }}",
    "doubled dicts": "{% set a = {} %}" + "{% set a = dict(x=a, y=a) %}" * 60 + "{{ a }}",
    "doubled lists by +": "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a | length }}",
    "doubled by map": "{% set a = [1] %}" + "{% set a = [b, c] | map('default', a) | list %}" * 60 + "{{ a }}",
    "many of a character": "{{ 'a' * 10 ** 11 }}",
    "many of a list": "{{ ([0] * 10 ** 10) | length }}",
    "many, the other way": "{{ 10 ** 11 * 'a' }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a power by multiplying": DOUBLED.replace("'ab'", "99").replace("PART", "ns.s * ns.s"),
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format, a method": "{{ '{:>1000000000}'.format(1) }}",
    "padding": "{{ 'a'.center(10 ** 10) }}",
    "zeros": "{{ '1'.zfill(10 ** 10) }}",
    "a filter that pads": "{{ 'a' | center(1000000000) }}",
    "an indent": "{{ [1] | tojson(indent=1000000000) }}",
    "bytes of a number": "{{ (1).to_bytes(10 ** 10) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a tree of macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a loop that calls itself": (
        "{% for i in [60] recursive %}{% if i %}{{ loop([i - 1, i - 1]) }}{% endif %}{% endfor %}"
    ),
    "slices of a big list": "{% set a = range(99999) | list %}{% for i in a %}{% set b = a[1:] %}{% endfor %}",
    "comparisons of big lists": (
        "{% set a = range(99999) | list %}{% for i in a %}{% if -1 in a %}{% endif %}{% endfor %}"
    ),
    "filters of big lists": "{% for i in range(99999) %}{{ range(99999) | select('odd') | first }}{% endfor %}",
    "sorts of a big list": "{% set a = range(99999) | list %}{% for i in a %}{{ a | sort | first }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "too long": "x" * 300_000,
    "lorem ipsum": "{{ lipsum(n=100000) }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by a filter": "{{ '' | attr('__class__') }}",
    "a class by an item": "{{ ''['__class__'] }}",
    "the globals of a function": "{{ raise_exception.__globals__ }}",
    "the globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "a class by map": "{{ [''] | map(attribute='__class__') | first }}",
    "a class in a format": "{{ '{0.__class__}'.format('') }}",
    "the frame of a generator": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "the loop's insides": "{% for i in [1] %}{{ loop._iterator.__class__ }}{% endfor %}",
    "a namespace with dunders": "{{ namespace(__class__=1).__class__.__mro__ }}",
    "a list that is changed": "{{ messages.append(1) }}",
    "a dict that is changed": "{{ messages[0].update({'role': 'x'}) }}",
    "another file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}",
    "a hidden meter": (
        "{% set environment = 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_template_ends_with_an_error_soon_and_in_little_memory(name, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises((DataError, ConfigError)) as error:
        shown = Template(HOSTILE[name]).render({"messages": MESSAGES})
        assert not shown.strip(), shown[:200]  # what may not be reached may also just be missing
        raise ConfigError("nothing is shown")
    assert time.perf_counter() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB
    assert error.value.what


def rendered(source, **values):
    return Template(source).render({"messages": MESSAGES, **values})


WORKING = [
    ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", "x\n"),
    ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
    ("{{ {'b': [1], 'a': none} | tojson(indent=1, sort_keys=True) }}", '{\n "a": null,\n "b": [\n  1\n ]\n}'),
    ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "01345678"),
    (
        "{% for i in range(9) if i > 2 %}{% if i == 5 %}{% break %}{% endif %}{{ loop.index }}{{ i }}{% endfor %}",
        "1324",
    ),
    ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
    ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
    ("{{ messages[0].content.split('l') | join('-') }} {{ ', '.join(['a', 'b']) }}", "he--o a, b"),
    ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hello;"),
    ("{% for k, v in messages[0] | items %}{{ k }};{% endfor %}", "role;content;"),
    ("{{ messages[::-1][0]['content'] | upper }}{{ messages[-1:] | length }}", "HELLO1"),
    ("{{ 'x' is in ['x'] }} {{ y is defined }} {{ messages is sequence }} {{ 1 if y else 2 }}", "True False True 2"),
    ("{% macro m(a, b=[1]) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m('x') %}y{% endcall %}", "x[1]y"),
    ("{{ 'a' ~ 1 ~ none }} {{ 'ab' * 2 }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ '<b>' | safe }}", "a1None abab 3 1024 <b>"),
    ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}", "['hello']"),
    ("{% set a, b = 1, 2 %}{{ a + b }}{% for x, y in [(1, 2)] %}{{ x }}{{ y }}{% endfor %}", "312"),
    ("{{ messages[0].content.replace('l', 'L', 1) | replace('o', '0') }}{{ messages[0].get('x', 3) }}", "heLl03"),
    ("{{ strftime_now('%Y') | length }}{{ dict(a=1).a }}", "41"),
]


@pytest.mark.parametrize(("source", "expected"), WORKING, ids=range(len(WORKING)))
def test_what_templates_of_chats_use_works(source, expected):
    assert rendered(source) == expected


def test_a_long_conversation_is_within_the_limits():
    messages = [{"role": "user", "content": "word " * 1000}] * 400
    source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    assert len(Template(source).render({"messages": messages})) > 2_000_000


def test_errors_say_where_and_why():
    with pytest.raises(DataError, match="line 2"):
        Template("\n{% for x in %}")
    with pytest.raises(ConfigError, match="no such role"):
        rendered("{{ raise_exception('no such role') }}")
    with pytest.raises(ConfigError, match="UndefinedError"):
        rendered("{{ messages[0].nothing.more }}")


def test_a_template_is_rendered_by_many_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    template = Template("{% for m in messages %}{{ m.content }}{% endfor %}")
    with ThreadPoolExecutor(4) as pool:
        texts = [str(number) * 50 for number in range(50)]
        assert [*pool.map(lambda text: template.render({"messages": [{"content": text}]}), texts)] == texts
