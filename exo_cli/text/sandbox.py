"""Templates from strangers, run with bounds: Jinja's immutable sandbox plus a meter.

What is guaranteed, whatever the template says:

- It reaches no Python object but those it is given: Jinja's sandbox, without the methods that speak
  bytes and without names that start with an underscore.
- It ends. Every pass of a loop, call, filter, test, comparison and piece of output is a step; steps
  are counted and looked at against a clock (`meter`).
- Between two steps little happens. Every text or list that it makes is charged to one allowance of
  characters, before it is made where an operation can blow up (`guards`). Whole numbers stay below
  2^60. So memory is bounded by the allowance (times what Python needs for a character), and time by
  MAX_SECONDS and the longest operation on one value of that size: seconds, not minutes.

Compiling is bounded by the length of the source alone. Filters that no chat needs and that cannot be
bounded so (urlize, striptags, wordwrap, xmlattr, pprint, random) are not there. Knows nothing of
chats.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import BuiltinMethodType, MethodType
from typing import Any, Final

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from exo_cli.text.guards import check_percents, check_widths, guarded
from exo_cli.text.meter import ALLOWANCE_PER_CHARACTER, ITEM, MIN_ALLOWANCE, Meter, TooMuch

MAX_SOURCE_CHARACTERS: Final = 256 * 1024
_GONE_FILTERS: Final = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "random")
_GONE_METHODS: Final = {"encode", "translate", "maketrans", "expandtabs", "to_bytes", "from_bytes"}

_METER: ContextVar[Meter] = ContextVar("meter")


class _Metering(Extension):
    """What the rewritten template calls. Its names cannot be reached from a template's own text."""

    def tick(self, context: Context, literal: int) -> bool:
        _METER.get().charge(literal)
        return True

    def made(self, context: Context, value: Any) -> Any:
        return _METER.get().made(value)

    def cut(self, context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return _METER.get().made(value[start:stop:step])

    def concat(self, context: Context, *parts: Any) -> str:
        meter = _METER.get()
        meter.afford(sum(meter.weigh(part) for part in parts))
        text = (markup_join if context.eval_ctx.autoescape else str_join)(parts)
        meter.charge(len(text))
        return text


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Rewriting(NodeTransformer):
    """Puts the meter where Jinja has no hook: loops, literal text, `~`, slices, comparisons, lists."""

    def __init__(self, extension: Extension) -> None:
        self._call = extension.call_method
        self._visitors: dict[type[nodes.Node], Callable[..., Any]] = {
            nodes.For: self._for,
            nodes.Output: self._output,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.Getitem: self._getitem,
            nodes.List: self._list,
            nodes.Tuple: self._tuple,
            nodes.Dict: self._dict,
        }

    def get_visitor(self, node: nodes.Node) -> Callable[..., Any] | None:
        return self._visitors.get(type(node))

    def _for(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick(0, node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._call("tick", [nodes.Const(0)]), node.test)
        return node

    def _output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        literal = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [self._tick(literal, node.lineno), node]

    def _concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("concat", node.nodes, lineno=node.lineno)

    def _compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return self._call("made", [node], lineno=node.lineno)

    def _getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        parts = [part if part is not None else nodes.Const(None) for part in bounds]
        return self._call("cut", [node.node, *parts], lineno=node.lineno)

    def _list(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._made(node, node.items)

    def _tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._made(node, node.items) if node.ctx == "load" else node

    def _dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._made(node, [pair.value for pair in node.items])

    def _made(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Node:
        if all(isinstance(item, nodes.Const) for item in items):
            return node
        return self._call("made", [node], lineno=node.lineno)

    def _tick(self, literal: int, line: int) -> nodes.Node:
        return nodes.ExprStmt(self._call("tick", [nodes.Const(literal)], lineno=line), lineno=line)


class _Names(Namespace):
    """A namespace whose names are no secrets of Python's, and that prints as nothing large."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` may be one of the names.
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {str(name)[:40]!r}")


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, without the class behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        meter = _METER.get()
        check_widths(format_spec)
        meter.step()
        meter.afford(meter.weigh(value))
        text = str(super().format_field(value, format_spec))
        meter.charge(len(text))
        return text


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face's chat templates expect it, with the meter in every place."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Metering, _Generation, loopcontrols]
        )
        self._metering = self.extensions[_Metering.identifier]
        self.finalize = _finalize
        self.globals.pop("lipsum")
        self.globals.update(dict=_Dict(), namespace=_Names)
        for name in _GONE_FILTERS:
            self.filters.pop(name)
        self.filters["tojson"] = _tojson
        self.filters = {name: _metered_filter(name, inner) for name, inner in self.filters.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests.update({name: _metered_test(inner) for name, inner in tests.items()})

    def load(self, source: str) -> tuple[Template, frozenset[str]]:
        """The template, rewritten and compiled, and every name that stands in it."""
        tree = self.parse(source)
        names = frozenset(node.name for node in tree.find_all(nodes.Name))
        tree = _Rewriting(self._metering).visit(tree)
        tree.set_environment(self)
        code = self.compile(tree)
        return Template.from_code(self, code, self.make_globals(None)), names

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr in _GONE_METHODS and isinstance(obj, str | bytes | int):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja would print such a value as nothing; whoever asks for it is told.
        if attribute.startswith("_"):
            raise SecurityError(f"it asks for {attribute[:40]!r} of a {type(obj).__name__}")
        return super().unsafe_undefined(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__
        is_map = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if is_map:
                args, kwargs = (), dict(*args)
            return type(text)(_Formatter(self).vformat(text, args, kwargs))

        return formatted

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        if isinstance(obj, MethodType) and obj.__self__ is self._metering:
            return obj(context, *args)
        for value in (*args, *kwargs.values()):
            meter.weigh(value)
        if isinstance(obj, BuiltinMethodType | MethodType) and isinstance(obj.__self__, str):
            _, args = guarded(meter, obj.__name__, obj.__self__, args, kwargs, method=True)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.step()
        weights = meter.weigh(left), meter.weigh(right)
        if operator == "*":
            for thing, times in ((left, right), (right, left)):
                if isinstance(thing, str | bytes | list | tuple) and isinstance(times, int):
                    meter.afford(len(thing) * times * (1 if isinstance(thing, str | bytes) else ITEM))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
            if left.bit_length() * right > 256:
                raise TooMuch("it makes a number of more than 60 bits")
        elif operator == "%" and isinstance(left, str):
            check_percents(left)
            meter.afford(len(left) + left.count("%") * weights[1])
        elif operator == "+":
            meter.afford(sum(len(part) for part in (left, right) if isinstance(part, str | list | tuple)))
        return meter.made(super().call_binop(context, operator, left, right))


def rendered(
    template: Template, values: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
) -> str:
    """The template's text for `values`, which hold JSON's kinds of data (and functions of ours)."""
    meter = Meter(MIN_ALLOWANCE, clock)
    size = sum(meter.weigh(value) for value in values.values())
    meter = Meter(MIN_ALLOWANCE + ALLOWANCE_PER_CHARACTER * size, clock)
    for value in values.values():
        meter.weigh(value)
    before = _METER.set(meter)
    try:
        return template.render(values)
    finally:
        _METER.reset(before)


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    meter = _METER.get()
    if not isinstance(value, str):
        meter.afford(meter.weigh(value))
        value = str(value)
    meter.charge(len(value))
    return value


def _metered_filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    # Taking the context also keeps Jinja from running a filter on constants while it compiles.
    @pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        for part in (value, *args, *kwargs.values()):
            meter.weigh(part)
        value, args = guarded(meter, name, value, args, kwargs, method=False)
        return meter.made(inner(*_wanted(inner, context), value, *args, **kwargs))

    return metered


def _metered_test(inner: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        _METER.get().step()
        return inner(*_wanted(inner, context), *args, **kwargs)

    return metered


def _wanted(inner: Callable[..., Any], context: Context) -> tuple[Any, ...]:
    """What Jinja would pass to this filter or test before its value."""
    wanted = getattr(getattr(inner, "jinja_pass_arg", None), "name", None)
    found: dict[str | None, tuple[Any, ...]] = {
        "context": (context,),
        "eval_context": (context.eval_ctx,),
        "environment": (context.environment,),
    }
    return found.get(wanted, ())


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: no escapes for HTML, letters as they are."""
    if indent is not None and (indent if isinstance(indent, int) else len(indent)) > 64:
        raise TooMuch("tojson is asked for an indent of more than 64")
    meter = _METER.get()
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
    chunks = []
    for chunk in encoder.iterencode(value):
        meter.charge(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)
