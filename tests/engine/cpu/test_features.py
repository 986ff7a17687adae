"""What is made of a processor's flags."""

import pytest

from exo_cli.engine.cpu import features
from exo_cli.engine.cpu.features import Features

ZEN5 = frozenset({"sse2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avxvnni"})


@pytest.mark.parametrize(
    ("flags", "dot", "missing"),
    [
        (ZEN5, "vnni512", ""),
        (ZEN5 - {"avx512bw"}, "vnni256", ""),
        (frozenset({"sse2", "avx2", "fma", "f16c", "avxvnni"}), "vnni256", ""),
        (frozenset({"sse2", "avx2", "fma", "f16c"}), "avx2", ""),
        (frozenset({"sse2", "avx"}), "generic", "avx2, fma, f16c"),
        (frozenset({"neon", "fp-armv8"}), "generic", ""),
    ],
)
def test_the_widest_products_that_there_are(flags: frozenset[str], dot: str, missing: str) -> None:
    found = Features("some", flags)
    assert (found.dot, found.missing) == (dot, missing)


def test_the_kernels_follow_what_numba_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2,+avx2,+fma,+f16c,-avx512f")
    found = features.here()
    assert (found.name, found.dot) == ("haswell", "avx2")
    assert found.key != Features("haswell", ZEN5).key
