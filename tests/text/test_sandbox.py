"""Templates that mean harm: each must end as BadData, having seen nothing and used little."""

import subprocess
import sys

import pytest

from exo_cli.errors import BadData
from exo_cli.text.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ '' | attr('__class__') }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__init__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__['os'] }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__dict__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ '%(a)s' % {'a': messages.__class__} }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | sort(attribute='__class__.__name__') }}",
    "{{ messages | groupby('__class__') }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    "{{ dict.__class__ }}",
    "{{ dict.mro() }}",
    "{{ range.__self__.__import__('os') }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% for x in [1] %}{{ loop._iterable.__class__ }}{% endfor %}",
    "{{ caller.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages.clear() }}",
    "{{ 'x'.encode().decode('unicode_escape') }}",
    "{{ lipsum.__globals__ }}",
    "{{ messages.__class__ is defined }}",
]

LOOP = "{% for a in range(99) %}"
STEPS = ("nested loops", "loops that filter", "two calls each")
"""Those that take no memory, only time."""
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that filter": "{% for a in range(99999) %}{% for b in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "two calls each": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "block in itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "doubling ~": "{% set ns = namespace(s='x') %}" + LOOP + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling +": "{% set ns = namespace(s=[1]) %}" + LOOP + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling blocks": "{% set s = 'x' %}" + "{% set s %}{{ s }}{{ s }}{{ s }}{{ s }}{% endset %}" * 40,
    "doubling joins": "{% set s = 'xx' %}" + "{% set s = [s, s, s, s] | join %}" * 40,
    "nested lists": "{% set ns = namespace(s='x') %}"
    + LOOP
    + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "nested dicts": "{% set ns = namespace(s='x') %}" + LOOP + "{% set ns.s = dict(a=ns.s, b=ns.s) %}"
    "{% endfor %}{{ ns.s | tojson }}",
    "nested arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}"
    "{% endmacro %}{{ f(80) }}",
    "slices kept": "{% set ns = namespace(l=[]) %}{% set b = 'x' * 10000000 %}{% for x in range(99) %}"
    "{% set ns.l = ns.l + [b[1:]] %}{% endfor %}",
    "literal text": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "times": "{{ 'x' * 10**10 }}",
    "list times": "{{ 10**10 * [1] }}",
    "power": "{{ 10**10**10 }}",
    "squares": "{% set ns = namespace(s=2) %}" + LOOP + "{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "center": "{{ 'x' | center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%-*d' % (1000000000, 1) }}",
    "percent point": "{{ '%.*f' % (1000000000, 1.0) }}",
    "percent name": "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "percent often": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "format often": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace by name": "{{ ('a' * 1000000) | replace(new='b' * 1000000, old='a') }}",
    "replace in a list": "{{ (['a'] * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace by a list": "{{ ('a' * 1000000) | replace('a', ['b'] * 100000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "format by name": "{{ ('%(a)s' * 100000) | format(a='x' * 100000) }}",
    "join with a list": "{{ range(99999) | join(['y'] * 100000) }}",
    "join": "{{ ('a' * 1000000).join(['b'] * 1000000) }}",
    "join text": "{{ ('y' * 1000000).join('x' * 1000000) }}",
    "join range": "{{ range(99999) | join('y' * 1000000) }}",
    "join same": "{{ range(99999) | map(attribute='q', default='x' * 1000000) | join }}",
    "translate": "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) }}",
    "bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "indent": "{{ ('x\n' * 1000000) | indent('y' * 1000000) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "slice": "{{ [1] | slice(10**10) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "sum": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "json indent": "{{ messages | tojson(indent=1000000000) }}",
    "json between": "{{ ([[1] * 1000] * 1000) | tojson(separators=('x' * 1000000, 'y')) }}",
    "split": "{{ ('a ' * 10000000).split() | length }}",
    "letters": "{{ ('a' * 10000000) | list | length }}",
    "find backwards": "{{ ('a' * 8000000).rfind('b' + 'a' * 4000000) }}",
    "split backwards": "{{ ('a' * 1000000).rsplit('b' + 'a' * 500000) }}",
    "strip": "{{ ('a' * 8000000).strip('b' * 4000000 + 'a') }}",
    "date": "{{ strftime_now('%Y' * 100000) }}",
    "while compiling": "{{ 'x' | center(1000000000) | length }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "minus": "{{ " + "-" * 5000 + "1 }}",
    "ifs": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "fors": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
}


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_of_python_is_reached(source: str) -> None:
    with pytest.raises(BadData, match="chat template"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize("name", BOMBS)
def test_every_template_ends(name: str) -> None:
    with pytest.raises(BadData, match="chat template"):
        ChatTemplate(BOMBS[name]).render(MESSAGES)


@pytest.mark.process
def test_no_template_takes_much_memory() -> None:
    """The bombs in one process that may have a gigabyte in all."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from exo_cli.errors import BadData
from exo_cli.text.template import ChatTemplate
from tests.text.test_sandbox import BOMBS, MESSAGES, STEPS
for name, source in BOMBS.items():
    if name in STEPS:
        continue
    try:
        ChatTemplate(source).render(MESSAGES)
        sys.exit(f"{name} went through")
    except BadData as error:
        if "MemoryError" in error.message:
            sys.exit(f"{name} took all memory")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% endfor %}",
        "{{ range(99999) | select('in', [0]) | list }}",
        "{{ range(99999) | map('string') | list }}",
        "{{ [" + "1 == 2," * 100 + "] }}",
    ],
)
def test_the_clock_ends_what_the_steps_do_not(source: str) -> None:
    """Also inside one filter: the clock stands still for the steps around it, then a minute passes."""
    looks = iter(range(1_000_000))
    with pytest.raises(BadData, match="more than 10 seconds"):
        ChatTemplate(source).render(MESSAGES, clock=lambda: 0.0 if next(looks) < 50 else 60.0)


def test_renderings_do_not_share_what_they_may_use() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% for b in range(8) %}{% endfor %}{% endfor %}")
    for _ in range(3):
        assert template.render(MESSAGES) == ""
