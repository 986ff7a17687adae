"""The report: whole, harmless, self-contained, whatever was measured."""

import math
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo_cli.bench.report import page
from exo_cli.plain import visible
from exo_cli.schemas.bench import Bench, Timeline
from tests.support import benches as make
from tests.support.html_page import Page

HOSTILE = (
    '<script src="https://evil.example/x.js"></script>',
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg></main><h1>owned",
    "<!-- ",
    "]]>&lt;b&gt;&#60;b>",
    "javascript:alert(1)",
    "\x1b[31mred\x00\u202egnirts\n\r",
)
NOT_SHOWN = {"ttfts", "itls", "input_lens", "output_lens"}
"""Single samples: in the file that the page carries, and in its charts."""
TAGS = """
a b body br caption data dd details div dl dt figcaption figure h1 h2 head header html i li main meta p
section span strong style summary table tbody td th thead time title tr ul
svg circle desc line polyline rect text
"""


def figures(value: Any, name: str = "") -> Iterator[float]:
    """Every number of the file but for single samples; a range of layers is told with its last one."""
    if name in NOT_SHOWN or name == "layers" or name.startswith("median_"):
        return
    if isinstance(value, dict):
        for key, each in value.items():
            yield from figures(each, key)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from figures(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from words(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from words(each)
    elif isinstance(value, str):
        yield value


def kinds(found: Page, *names: str) -> list[str]:
    return [tag.attributes.get("class", "") for tag in found.named(*names)]


def check(bench: Bench) -> Page:
    """What holds for every page."""
    source = page(bench)
    found = Page.of(source)
    assert set(figures(msgspec.to_builtins(bench))) <= found.figures
    assert {tag.name for tag in found.tags} <= set(re.findall(r"\w+", TAGS))
    for tag in found.tags:
        assert not [name for name in tag.attributes if name.startswith("on") or name in ("src", "style")]
    assert [tag.attributes["href"][:29] for tag in found.named("a")] == ["data:application/json;base64,"]
    ids = [tag.attributes["id"] for tag in found.tags if "id" in tag.attributes]
    assert len(set(ids)) == len(ids)
    for picture in found.named("svg"):
        assert set(picture.attributes["aria-labelledby"].split()) <= set(ids)
    drawn = [value for tag in found.tags for name, value in tag.attributes.items() if name != "value"]
    assert not re.search(r"\b(nan|inf)\b", " ".join(drawn), re.IGNORECASE)
    return found


def test_a_benchmark_is_told_whole() -> None:
    found = check(make.bench())
    for each in (
        "llama-3.2-1b",
        "Greedy tokens agree",
        "It does not fit on one node.",
        "Random weights are not",
    ):
        assert each in found.words
    assert len(found.named("svg")) == 5
    assert [kind for kind in kinds(found, "div") if "banner" in kind] == ["banner valid"]


def test_each_stage_says_how_it_computed() -> None:
    stages = (
        make.stage("a", 0, 2, numerics="fast", kernels="avx512-vnni"),
        make.stage("b", 2, 3, numerics="exact", numerics_reason="a processor without <fma>"),
        make.stage("c", 3, 4),
    )
    found = check(make.bench(stages=stages))
    for each in ("fast", "avx512-vnni", "a processor without <fma>", "not known"):
        assert each in found.words


def test_medians_are_told_too() -> None:
    bench = make.bench()
    told = check(bench).figures
    for level in bench.levels:
        assert {getattr(level, f"median_{metric}_ms") for metric in ("ttft", "itl", "tpot", "e2el")} <= told


def test_the_file_goes_along() -> None:
    bench = make.bench()
    (link,) = check(bench).named("a")
    carried = b64decode(link.attributes["href"].partition(",")[2])
    assert msgspec.json.decode(carried, type=Bench) == bench


def test_self_contained_in_light_and_dark() -> None:
    source = page(make.bench())
    assert not re.search(
        r"https?:|//|@import|url\(|<script|<link|<iframe|<object", source.replace("base64,", "")
    )
    assert page(make.bench()) == source
    found = Page.of(source)
    assert "prefers-color-scheme: dark" in found.style
    policies = [tag.attributes["content"] for tag in found.named("meta") if "http-equiv" in tag.attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert [tag.attributes["lang"] for tag in found.named("html")] == ["en"]


def test_figures_that_are_not_valid_say_so_first() -> None:
    found = check(make.bench(gate=make.gate(valid=False)))
    alert = [tag for tag in found.named("div") if tag.attributes.get("role") == "alert"]
    assert [tag.attributes["class"] for tag in alert] == ["banner invalid"]
    told = found.words
    assert told.index("These figures are not valid") < told.index("Decode, tokens/s")
    assert "differs from token 17 on: 1009 instead of 84" in told


def test_a_gate_that_was_skipped_is_no_good_news() -> None:
    gate = make.gate()
    (_, skipped) = gate.checks
    found = check(make.bench(gate=msgspec.structs.replace(gate, checks=(skipped,))))
    assert "Greedy tokens agree" not in found.words
    assert "Tokens were not checked" in found.words


@pytest.mark.parametrize("hostile", HOSTILE)
def test_strangers_words_have_no_power(hostile: str) -> None:
    bench = make.bench(
        model=msgspec.structs.replace(make.bench().model, name=hostile, digest=hostile),
        stages=(make.stage(hostile, 0, 16, node_id=hostile, os=hostile, chip=hostile, backend=hostile),),
        timeline=make.timeline(make.stage_time(hostile, 0, 9, 3, 1), make.stage_time(hostile, 9, 16, 4, 1)),
        levels=(make.level(errors=(hostile,)),),
        notes=(hostile,),
        reason=hostile,
        target=hostile,
        machine=hostile,
    )
    found = check(bench)
    assert found.words.count(visible(hostile)) > 10
    assert len(found.named("h1")) == 1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(make.any_bench(st.text(max_size=12) | st.sampled_from(HOSTILE)))
def test_any_benchmark_is_a_page(bench: Bench) -> None:
    found = check(bench)
    for each in (bench.model.name, bench.machine, bench.version, *words(bench.notes)):
        assert visible(each) in found.words


@pytest.mark.parametrize("sample_s", [0.0, 1e-9, 1.0, 1e9, 1e300])
def test_one_sample_of_any_size(sample_s: float) -> None:
    found = check(make.bench(levels=(make.level(ttfts_s=[sample_s], itls_s=[[sample_s]]),)))
    assert (
        len([tag for tag in found.named("svg") if tag.attributes["aria-labelledby"][:3] in ("ttf", "itl")])
        == 2
    )


def test_nothing_measured() -> None:
    nothing = make.level(ttfts_s=(), itls_s=(), failed=5, num_prompts=5, errors=("the stage is gone",))
    found = check(make.bench(levels=(nothing,), timeline=None, links=(), stages=()))
    assert found.named("svg") == []
    assert "the stage is gone" in found.words
    assert "The stages told nothing of their steps." in found.words
    assert "Nothing was measured." in check(make.bench(levels=())).words


def test_what_is_no_number_is_not_known() -> None:
    odd = make.level(decode_tokens_per_s=math.nan, output_throughput=math.inf, prefill_tokens_per_s=None)
    deep = make.level(1, 4096, decode_tokens_per_s=50.0)
    bench = make.bench(levels=(odd, make.level(2, decode_tokens_per_s=90.0), deep))
    source = page(bench)
    found = Page.of(source)
    assert all(math.isfinite(value) for value in found.figures)
    assert not re.search(r"\b(nan|inf)\b", found.words, re.IGNORECASE)
    assert '<data value="90.0">' in source


def test_the_slowest_stage_is_named_and_coloured() -> None:
    stages = [make.stage_time(f"node-{at}", at, at + 1, 20 if at == 2 else 10, 1) for at in range(4)]
    found = check(make.bench(timeline=make.timeline(*stages)))
    assert "Stage 2 on node-2 computes longest: 20 ms of 55.6 ms, 36%" in found.words
    bars = [tag for tag in found.named("rect") if tag.attributes["class"] in ("slow", "compute")]
    assert [bar.attributes["class"] for bar in bars] == ["compute", "compute", "slow", "compute"]
    assert float(bars[2].attributes["width"]) == pytest.approx(
        2 * float(bars[0].attributes["width"]), abs=0.2
    )


@pytest.mark.parametrize(("hops", "wires"), [([None, None], 1), ([1.0, 0.62], 2), ([1.0, None], 1)])
def test_wires_stand_where_they_are_known(hops: list[float | None], wires: int) -> None:
    two: Timeline = make.timeline(
        make.stage_time("a", 0, 1, 5, 1), make.stage_time("b", 1, 2, 6, 1), hops=hops
    )
    found = check(make.bench(timeline=two))
    assert len([tag for tag in found.named("rect") if tag.attributes["class"] == "wire"]) == wires
    assert ("only as the sum over its hops" in found.words) == (None in hops)


def test_a_speed_against_one_thing_alone_has_no_chart() -> None:
    told = check(make.bench(levels=make.bench().levels[:1], timeline=None)).words
    assert "Throughput against concurrency" not in told
    assert "Decode speed against context" not in told
