"""What a backend computes: tried, compared with the truth, and said with the reason."""

import json
import subprocess
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from exo_cli.engine import families, formats, loading
from exo_cli.errors import BadData
from tests.support import parity
from tests.support.tiny_models import Tiny

on_cpu = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu, 0), reason="of MLX's CPU backend")


@on_cpu
def test_a_cpu_computes_all_but_experts_of_sixteen_bits() -> None:
    troubles = {name: why for name in formats.known() if (why := formats.trouble(name)) is not None}
    assert set(troubles) == {"float16 experts", "bfloat16 experts"}
    assert "float32" in troubles["bfloat16 experts"]


@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_group_size_has_a_trial(group: int) -> None:
    assert formats.trouble("affine4", group) is None
    assert formats.trouble("affine4 experts", group) is None


def test_a_wrong_result_is_trouble_and_so_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mx.quantized_matmul

    def wrong(*arguments: Any, **options: Any) -> mx.array:
        return right(*arguments, **options) + 0.5

    def fails(*_: Any, **__: Any) -> mx.array:
        raise RuntimeError("[quantized_matmul]\n no kernel")

    monkeypatch.setattr(mx, "quantized_matmul", wrong)
    assert formats.trouble("mxfp4") == "its result was off by 0.5"
    assert formats.trouble("mxfp4 experts") is None
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **o: right(*a, **o) * float("nan"))
    assert formats.trouble("affine8") == "its result was off by nan"
    monkeypatch.setattr(mx, "quantized_matmul", fails)
    assert formats.trouble("affine4") == "[quantized_matmul] no kernel"


def test_a_layer_says_its_format() -> None:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear

    assert formats.name_of(nn.Linear(64, 64)) is None
    assert formats.name_of(nn.QuantizedEmbedding(64, 64, 64, 8)) == ("affine8", 64)
    assert formats.name_of(nn.QuantizedLinear(64, 64, group_size=32, bits=4, mode="mxfp4")) == ("mxfp4", 32)
    assert formats.name_of(QuantizedSwitchLinear(64, 64, 4, bits=3, group_size=32)) == ("affine3 experts", 32)


def test_a_stage_with_a_format_that_fails_here_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = parity.skeleton_of(tiny("qwen3_moe", bits=4))
    asked: list[tuple[str, int]] = []

    def trouble(name: str, group: int) -> str | None:
        asked.append((name, group))
        return "no kernel" if name.endswith("experts") else None

    monkeypatch.setattr(formats, "trouble", trouble)
    with pytest.raises(BadData, match="does not compute affine4 experts weights in groups of 32: no kernel"):
        loading.load_stage(skeleton, 0, 2)
    assert ("affine4", 32) in asked
    dense = parity.skeleton_of(tiny("llama"))
    asked.clear()
    loading.load_stage(dense, 0, 2)
    assert not asked


@pytest.mark.process
def test_the_process_says_each_trial_before_its_outcome() -> None:
    left_out = formats.known()[:-2]
    with subprocess.Popen(
        [sys.executable, "-m", "exo_cli.engine.abilities", *left_out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    refused = {line["family"]: line["trouble"] for line in lines if "family" in line}
    assert refused == families.refused_families()
    last, best = formats.known()[-2:]
    assert lines[len(refused) :] == [
        {"trying": last},
        {"format": last, "trouble": None},
        {"trying": best},
        {"format": best, "trouble": None},
    ]
    assert process.returncode == 0


@pytest.mark.process
def test_the_process_ends_with_its_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exo_cli.engine.abilities"], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == 0
