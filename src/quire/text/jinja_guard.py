"""A Jinja environment for chat templates, which come with model files and are not to be trusted.

Jinja's immutable sandbox keeps a template from reaching Python; here it also gets a budget of work and of text, which
loops, calls and growing values draw on. Settings and helpers are those of Transformers, so that output is the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

BUDGET = " budget"  # a variable that no template can name
CPU_SECONDS = 5.0
BASE_CHARS = 1_000_000
CHARS_PER_INPUT_CHAR = 8
MAX_WIDTH = 10_000
MAX_INT_BITS = 4096
TICKS_BETWEEN_CLOCK_READS = 64
_PADDING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")
_WIDE_PERCENT = re.compile(r"%[^%A-Za-z]*(\d{5}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\{|\d{5})")
_UNUSED_FILTERS = (
    "batch",
    "center",
    "slice",
    "wordwrap",
    "urlize",
    "random",
)  # can grow without bound; none needs them


class OverBudget(TemplateRuntimeError):
    """The template works too long, or writes too much."""


class Budget:
    """What one rendering may use: seconds of its thread's processor time, characters in any one value."""

    def __init__(self, input_chars: int) -> None:
        self._until = time.thread_time() + CPU_SECONDS
        self._ticks = 0
        self.max_chars = BASE_CHARS + CHARS_PER_INPUT_CHAR * input_chars

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % TICKS_BETWEEN_CLOCK_READS == 0 and time.thread_time() > self._until:
            raise OverBudget("it takes too long")

    def size(self, size: int) -> None:
        if size > self.max_chars:
            raise OverBudget("it writes too much")


def compile_template(source: str) -> Template:
    """Raises ``jinja2.TemplateError`` or ``RecursionError`` for what is no template."""
    env = _environment()
    tree = env.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "metered loop", [], [], None, None)
    _meter_concatenations(tree)
    code = env.compile(tree)
    return env.template_class.from_code(env, code, env.make_globals(None))


def _meter_concatenations(node: nodes.Node) -> None:
    """``a ~ b``, which Jinja lets nobody intercept, becomes a filter on ``[a, b]``."""
    for child in node.iter_child_nodes():
        _meter_concatenations(child)
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, name, _metered_concat(value))
        elif isinstance(value, list):
            value[:] = [_metered_concat(v) if isinstance(v, nodes.Concat) else v for v in value]


def _metered_concat(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(nodes.List(node.nodes), "metered concat", [], [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_binop(_budget(context), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Called for each ``text.format`` that a template reaches for."""
        if isinstance(owner := getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            _check_format(owner)
        return super().wrap_str_format(value)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # names as in Jinja
        budget = _budget(__context)
        budget.tick()
        owner, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_method(budget, owner, method, args)
        return super().call(__context, __obj, *args, **kwargs)


def _budget(context: Context) -> Budget:
    budget: Budget = context.get(BUDGET)
    return budget


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, (str, list, tuple)) else None


def _check_binop(budget: Budget, operator: str, left: Any, right: Any) -> None:
    budget.tick()
    a, b = _length(left), _length(right)
    if operator == "+" and a is not None and b is not None:
        budget.size(a + b)
    elif operator == "*" and isinstance(right, int) and a is not None:
        budget.size(a * max(right, 0))
    elif operator == "*" and isinstance(left, int) and b is not None:
        budget.size(b * max(left, 0))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_INT_BITS:
            raise OverBudget("it computes with too large numbers")


def _check_method(budget: Budget, owner: str, method: str, args: tuple[Any, ...]) -> None:
    """Methods of strings whose result can be far larger than what goes in."""
    if method in _PADDING_METHODS and args and isinstance(args[0], int) and args[0] > MAX_WIDTH:
        raise OverBudget("it pads text without bound")
    if method == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        _check_replace(budget, owner, args[0], args[1])
    elif method == "join" and args and isinstance(args[0], (list, tuple)):
        _check_join(budget, owner, args[0])


def _check_format(text: str) -> None:
    if _WIDE_PERCENT.search(text) or _WIDE_BRACES.search(text):
        raise OverBudget("it pads text without bound")


def _check_replace(budget: Budget, text: str, old: str, new: str) -> None:
    budget.size(len(text) + text.count(old) * len(new))


def _check_join(budget: Budget, joint: str, items: Iterable[Any]) -> None:
    budget.size(sum(len(item) + len(joint) for item in items if isinstance(item, str)))


@pass_context
def _metered_loop(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    tick = _budget(context).tick
    for item in items:
        tick()
        yield item


@pass_context
def _concat(context: Context, items: list[Any]) -> str:
    texts = [str(item) for item in items]
    _budget(context).size(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _join(context: Context, items: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    listed = list(items)
    _check_join(_budget(context), str(d), listed)
    joined: str = _JINJA_FILTERS["join"](context.eval_ctx, listed, d, attribute)
    return joined


@pass_context
def _replace(context: Context, s: str, old: str, new: str, count: int | None = None) -> str:
    _check_replace(_budget(context), str(s), str(old), str(new))
    replaced: str = _JINJA_FILTERS["replace"](context.eval_ctx, s, old, new, count)
    return replaced


@pass_context
def _indent(context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    each = len(width) if isinstance(width, str) else width
    _budget(context).size(len(s) + (str(s).count("\n") + 1) * each)
    indented: str = _JINJA_FILTERS["indent"](s, width, first, blank)
    return indented


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_format(value)
    formatted: str = _JINJA_FILTERS["format"](value, *args, **kwargs)
    return formatted


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, leaves <, > and & as they are."""
    if isinstance(indent, int) and indent > MAX_WIDTH // 1000:
        raise OverBudget("it pads text without bound")
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class RaisedByTemplate(TemplateRuntimeError):
    """The template's own words on what is wrong with the messages."""


def _raise_exception(message: Any) -> NoReturn:
    raise RaisedByTemplate(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """Jinja's, without names that could reach Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("names of a namespace must not start with an underscore")


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; here its content is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> str:
        return caller()


def _environment() -> _Environment:
    env = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    for name in _UNUSED_FILTERS:
        del env.filters[name]
    env.filters |= _FILTERS
    del env.globals["lipsum"]
    env.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _dict,
        "namespace": _Namespace,
    }
    return env


_JINJA_FILTERS: dict[str, Callable[..., Any]] = dict(ImmutableSandboxedEnvironment().filters)
_FILTERS: dict[str, Callable[..., Any]] = {
    "metered loop": _metered_loop,
    "metered concat": _concat,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "format": _format,
    "tojson": _to_json,
}
