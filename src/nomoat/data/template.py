"""Templates that came with somebody's checkpoint: Jinja that reaches nothing and ends in time.

    source -> tree, with a meter in loops, comparisons and containers -> code -> text, or an error in words

Jinja's sandbox keeps a template from Python's insides, not from `range(10 ** 9)` or a string doubled forty times: so
its time, and the characters and items that it makes, are metered, and only harmless methods and filters are there.
Otherwise it sees what transformers gives it: trim_blocks, lstrip_blocks, loopcontrols, `tojson` and so on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from nomoat.core.errors import ConfigError, DataError, NomoatError

SOURCE, MADE, SECONDS = 200_000, 20_000_000, 2.0
"""Most characters of a template; most characters and items that a rendering makes; most seconds that it takes."""
LARGEST_POWER, INTEGER_BITS, INDENT = 64, 4096, 32

# What makes little of little: `center`, `format` and `to_bytes` are not among it.
METHODS = set(
    """strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith removeprefix removesuffix
    upper lower title capitalize replace find rfind index rindex count join isalpha isdigit isalnum isspace isupper
    islower keys values items get copy""".split()  # noqa: SIM905
)
FILTERS = set(
    """abs capitalize count d default dictsort e escape first float groupby int items join last length list lower map
    max min reject rejectattr replace reverse safe select selectattr sort string title tojson trim unique upper
    wordcount""".split()  # noqa: SIM905
)

_meter: ContextVar[list[float]] = ContextVar("_meter")  # what may still be made, and until when


def _excess(why: str) -> DataError:
    return DataError("the chat template does what a template may not", why, "use another template: chat.json has it")


def _spend(amount: int) -> None:
    meter = _meter.get()
    meter[0] -= amount
    if meter[0] < 0:
        raise _excess(f"it makes more than {MADE:,} characters and items")
    if time.monotonic() > meter[1]:
        raise _excess(f"it takes more than {SECONDS:g} seconds")


def _metered(value: Any) -> Any:
    """`value`, with all that it holds spent (twice what it holds twice); what comes item by item becomes a list."""
    if isinstance(value, Iterator):
        value = [*islice(value, MADE)]
    waiting = [value]
    while waiting:
        item = waiting.pop()
        _spend(1 + (len(item) if isinstance(item, str | range) else 0))
        if isinstance(item, int) and item.bit_length() > INTEGER_BITS:
            raise _excess("it counts beyond all bounds")
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += item
    return value


def _concat(pieces: Any) -> str:
    return "".join([_metered(piece) for piece in pieces])


class _Metering(NodeTransformer):
    """Puts a call that spends round whatever can cost much, and into every loop."""

    def visit(self, node: nodes.Node, *arguments: Any, **named: Any) -> Any:
        node = super().visit(node, *arguments, **named)
        if isinstance(node, nodes.For):
            node.body.insert(0, nodes.ExprStmt(_call("tick", nodes.Const(None))))
            node.test = node.test and _call("tick", node.test)  # type: ignore[arg-type]
        if isinstance(node, nodes.Concat):
            return _call("chain", *node.nodes)
        if isinstance(node, nodes.Compare | nodes.Test) or isinstance(getattr(node, "arg", None), nodes.Slice):
            return _call("tick", node)  # type: ignore[arg-type]
        if isinstance(node, nodes.List | nodes.Dict | nodes.Tuple) and getattr(node, "ctx", "load") == "load":
            return _call("hold", node)
        return node


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    """A call of the sandbox itself, which no variable of a template can hide."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class _Generation(Extension):
    """`{% generation %}` marks what the model says; `data/chat.py` finds that in any template, so it adds nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Opaque(Namespace):
    __repr__ = object.__repr__  # Jinja's own shows what it holds, which may be itself


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        known = {**self.filters, "tojson": _tojson, "replace": _replace, "join": _join}
        self.filters = {name: _metering(function) for name, function in known.items() if name in FILTERS}
        self.globals = {
            **{"range": self.globals["range"], "namespace": _Opaque, "raise_exception": _refuse},
            "dict": lambda *items, **named: dict(*items, **named),
            "strftime_now": lambda form: datetime.now().strftime(form[:200]),
        }

    def tick(self, value: Any) -> Any:
        _spend(1 + (len(value) if isinstance(value, str | list | tuple) else 0))
        return value

    def hold(self, value: Any) -> Any:
        return _metered(value)

    def chain(self, *values: Any) -> str:
        return _concat(map(str, values))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        ours = isinstance(obj, str | int | float | list | tuple | dict | set | range)
        return super().is_safe_attribute(obj, attr, value) and (attr in METHODS or not ours)

    def wrap_str_format(self, value: Any) -> None:
        """`format` is not among the methods."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("a string is formatted with %")
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= LARGEST_POWER):
            raise _excess(f"it raises to a power above {LARGEST_POWER}")
        for some, times in ((left, right), (right, left)) if operator == "*" else ():
            if isinstance(some, str | list | tuple) and isinstance(times, int):
                _spend(len(some) * max(0, times))
        return _metered(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *values: Any, **named: Any) -> Any:  # noqa: N805
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if owner is __self:
            return __obj(*values)
        if isinstance(owner, str) and name in ("replace", "join"):
            return _replace(owner, *values, **named) if name == "replace" else _join(values[0], owner)
        return _metered(super().call(__context, __obj, *values, **named))


def _metering(function: Callable[..., Any]) -> Callable[..., Any]:
    return wraps(function)(lambda *values, **named: _metered(function(*values, **named)))


def _refuse(message: object) -> None:
    raise ConfigError("the model's chat template refuses these messages", str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
    _metered(value)
    if indent is not None and not (isinstance(indent, int) and indent <= INDENT):
        raise _excess(f"it indents by more than {INDENT}")
    # Without Jinja's escapes for HTML, as transformers has it.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(items: Any, between: Any = "") -> str:
    texts = [*map(str, items)]
    _spend(sum(map(len, texts)) + len(str(between)) * len(texts))
    return str(between).join(texts)


class Template:
    """A template, read once and rendered as often as one likes, by any thread.

    Raises:
        DataError: it is too long, no Jinja, or already costs too much to be read.
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE:
            raise _excess(f"it has {len(source):,} characters; {SOURCE:,} may be")
        sandbox = _Sandbox()
        with _watched():
            self._template = sandbox.from_string(_Metering().visit(sandbox.parse(source)))

    def render(self, values: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            ConfigError: the template refuses these values, or stumbles over them.
            DataError: it asks for too much, or for what a template may not have.
        """
        with _watched():
            return self._template.render(values)


@contextmanager
def _watched() -> Iterator[None]:
    token = _meter.set([MADE, time.monotonic() + SECONDS])
    try:
        yield
    except NomoatError:
        raise
    except TemplateSyntaxError as error:
        raise DataError("the chat template cannot be read", f"line {error.lineno}: {error.message}") from None
    except (SecurityError, MemoryError, RecursionError) as error:
        raise _excess(str(error) or type(error).__name__) from None
    except Exception as error:  # whatever somebody's template stumbles over
        raise ConfigError("the chat template fails on these messages", f"{type(error).__name__}: {error}") from None
    finally:
        _meter.reset(token)
