"""Weights that are no numbers: refused by name, and only by the stage that has them."""

import json
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.engine import loading
from exo_cli.errors import BadData
from tests.support import parity
from tests.support.tiny_models import Tiny

NAN, INFINITY = struct.pack("<f", float("nan")), struct.pack("<f", float("-inf"))


def damaged(directory: Path, into: Path, name: str, value: bytes, at: int = 8) -> Path:
    """A copy whose tensor of that name has these bytes in it."""
    shutil.copytree(directory, into)
    for path in into.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + length]).get(name)
        if entry is not None:
            begin = 8 + length + entry["data_offsets"][0] + at
            data[begin : begin + len(value)] = value
            path.write_bytes(data)
            return into
    raise AssertionError(name)


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize(
    ("bits", "name"),
    [
        (None, "model.layers.2.mlp.down_proj.weight"),
        (None, "model.layers.2.input_layernorm.weight"),
        (4, "model.layers.2.self_attn.q_proj.scales"),
        (4, "model.layers.2.self_attn.q_proj.biases"),
    ],
)
def test_a_weight_that_is_no_number_is_refused_by_its_stage_alone(
    bits: int | None, name: str, value: bytes, tiny: Tiny, tmp_path: Path
) -> None:
    skeleton = parity.skeleton_of(damaged(tiny("llama", bits=bits), tmp_path / "model", name, value))
    with pytest.raises(BadData, match=name) as error:
        loading.load_stage(skeleton, 2, 4)
    assert error.value.hint
    loading.load_stage(skeleton, 0, 2)
    loading.load_stage(skeleton, 3, 4)


@pytest.mark.parametrize(
    ("mode", "bits", "value"), [("mxfp4", 4, 0xFF), ("mxfp8", 8, 0xFF), ("nvfp4", 4, 0x7F)]
)
def test_a_byte_scale_that_is_no_number_is_refused(
    mode: str, bits: int, value: int, tiny: Tiny, tmp_path: Path
) -> None:
    group = 16 if mode == "nvfp4" else 32
    directory = tiny("llama", bits=bits, mode=mode, group_size=group)
    name = "model.layers.1.mlp.up_proj.scales"
    loading.load_stage(parity.skeleton_of(directory), 1, 2)
    skeleton = parity.skeleton_of(damaged(directory, tmp_path / "model", name, bytes([value])))
    with pytest.raises(BadData, match=name):
        loading.load_stage(skeleton, 1, 2)


def test_sixteen_bit_weights_are_looked_at_too(tiny: Tiny, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    half = tiny("llama", dtype=mx.bfloat16)
    skeleton = parity.skeleton_of(damaged(half, tmp_path / "model", name, b"\x80\x7f"))
    with pytest.raises(BadData, match=name):
        loading.load_stage(skeleton, 0, 1)
