"""What is made of a processor's flags, and that the kernels make the same of them."""

import pytest

from exo_cli.cluster import processor
from exo_cli.cluster.processor import flags_of, kernels_here, kernels_of, numerics_here
from exo_cli.engine.cpu import features
from exo_cli.engine.cpu.features import Features

X86 = """processor	: 0
flags		: fpu sse2 fma avx2 f16c avx512f avx512bw avx512vl avx512_vnni

processor	: 1
flags		: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"
AVX2 = frozenset(("sse2", "avx2", "fma", "f16c"))
DOTS = {"avx512-vnni": "vnni512", "avx-vnni": "vnni256", "avx2": "avx2", "neon": "generic"}


def test_flags_are_those_of_the_first_processor_as_llvm_spells_them() -> None:
    assert {"sse2", "avx512vnni"} < flags_of(X86)
    assert flags_of(ARM) == {"fp", "asimd", "asimddp"}
    assert flags_of("") == frozenset()


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (flags_of(X86), "avx512-vnni"),
        (AVX2 | {"avx512f", "avx512vl", "avx512vnni"}, "avx-vnni"),
        (AVX2 | {"avxvnni"}, "avx-vnni"),
        (AVX2, "avx2"),
        (AVX2 - {"f16c"}, None),
        (frozenset({"sse2"}), None),
        (frozenset({"asimd"}), "neon"),
        (frozenset({"neon"}), "neon"),
    ],
)
def test_the_class_of_kernels_is_what_the_kernels_find_themselves(
    flags: frozenset[str], found: str | None
) -> None:
    assert kernels_of(flags, "any") == found
    engine = Features("any", flags)
    assert bool(engine.missing) is (found is None)
    if found is not None:
        assert engine.dot == DOTS[found]


def test_without_flags_the_machine_decides() -> None:
    assert kernels_of(frozenset(), "aarch64") == "neon"
    assert kernels_of(frozenset(), "x86_64") is None
    assert kernels_of(frozenset(), "riscv64") == "generic"


def test_here_both_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernels_here()
    assert bool(features.here().missing) is (found is None)
    assert found is None or DOTS.get(found, "generic") == features.here().dot
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2,+avx2,-fma,+f16c")
    assert kernels_here() is None
    assert features.here().missing == "fma"


def test_what_an_engine_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics_here("cpu", "avx2") == ("exact", "fast")
    assert numerics_here("cpu", None) == ("exact",)
    assert numerics_here("metal", "neon") == ("exact",)
    assert numerics_here("none", None) == ()
    monkeypatch.setattr(processor, "find_spec", lambda name: None)
    assert numerics_here("cpu", "avx2") == ("exact",)
