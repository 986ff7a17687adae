"""Random weights described: as mlx-lm's own conversion would name, shape and pack them, and nothing wild."""

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten

from exo_cli.drive.size import size_of
from exo_cli.errors import BadData, CannotCreate, ExoError, NotFound, UsageProblem
from exo_cli.models import catalogue, random_files, random_model, random_values
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.geometry import Format
from exo_cli.models.random_model import RandomModel
from tests.support import random_models
from tests.support.random_models import ROWS, small

_DTYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}


def converted(family: str, bits: int | None, group: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What mlx-lm itself makes of the model: dtype and shape by name."""
    made = random_models.config(family)
    module = importlib.import_module(f"mlx_lm.models.{mlx_lm.utils.MODEL_REMAPPING.get(family, family)}")
    model = module.Model(module.ModelArgs.from_dict(dict(made)))
    if family.startswith("gemma3"):
        # Tied by what a checkpoint lacks.
        (model.language_model if family == "gemma3" else model).sanitize({})
    model.set_dtype(mx.bfloat16)
    if bits is not None:
        model, _ = mlx_lm.utils.quantize_model(model, dict(made), group, bits)
    return {
        name: (_DTYPES[array.dtype], array.shape)
        for name, array in tree_flatten(model.parameters())
        # What mlx-lm makes itself and no checkpoint holds.
        if not name.startswith("vision_tower")
    }


@pytest.mark.parametrize(("bits", "group"), [(None, 64), (4, 64), (8, 32), (3, 32)])
@pytest.mark.parametrize("family", sorted(ROWS))
def test_every_tensor_is_as_mlx_lm_converts_it(
    family: str, bits: int | None, group: int, tmp_path: Path
) -> None:
    made = small(family, tmp_path, bits=bits, group=None if bits is None else group)
    assert {each.name: (each.dtype, each.shape) for each in made.tensors.values()} == converted(
        family, bits, group
    )


@pytest.mark.parametrize("row", catalogue.rows(), ids=lambda row: row.name)
def test_the_catalogues_models_weigh_what_their_geometry_says(
    row: catalogue.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As they are stored; an engine that computes in float32 holds more.
    monkeypatch.setattr("exo_cli.drive.size._held_bytes", lambda tensor: tensor.nbytes)
    for bits, form in ((16, Format()), (4, Format(4))):
        made = random_model.random_model(row.name, bits=bits, group=64 if bits < 16 else None)
        directory = made.directory()
        assert directory.weights_bytes == row.geometry.weight_bytes(form)
        size = size_of(directory)
        assert size.layer_bytes == row.geometry.layer_bytes(form)
        assert (made.layers, made.vocabulary) == (
            len(size.layer_bytes),
            row.geometry.embedding["embed_tokens.weight"].shape[0],
        )


def test_gpt_oss_is_packed_as_it_was_published() -> None:
    made = random_model.random_model("gpt-oss-20b", bits=4)
    kinds = {name.split(".", 3)[-1]: each for name, each in made.tensors.items() if ".layers.0." in name}
    assert kinds["mlp.experts.gate_proj.scales"].dtype == "U8"
    assert "mlp.experts.gate_proj.biases" not in kinds
    assert kinds["self_attn.q_proj.weight"].shape[-1] * 32 // 8 == 2880
    # The file at the hub: 12.1 GB.
    assert 12.0e9 < made.directory().weights_bytes < 12.2e9
    plain = random_model.random_model("gpt-oss-20b", bits=4, group=32)
    assert "mxfp4" not in plain.config.decode()
    # As OpenAI's own config.json says it.
    settings = {**random_models.config("gpt_oss"), "quantization_config": {"quant_method": "mxfp4"}}
    assert "mxfp4" in random_model._formatted(settings, None, None)["quantization"]["mode"]


def test_a_configuration_with_its_own_packing_keeps_it(tmp_path: Path) -> None:
    own = {"group_size": 32, "bits": 8, "model.embed_tokens": {"group_size": 64, "bits": 4}, "lm_head": False}
    made = small("mistral", tmp_path, bits=None, quantization=own)
    assert made.tensors["model.embed_tokens.weight"].shape == (96, 16)
    assert made.tensors["model.layers.1.mlp.up_proj.scales"].shape == (192, 4)
    assert made.tensors["lm_head.weight"].dtype == "BF16"
    assert "quantization" not in json.loads(small("mistral", tmp_path, bits=16, quantization=own).config)


@pytest.mark.parametrize(
    ("bits", "said", "dtype"),
    [
        (None, None, "BF16"),
        (None, "float16", "F16"),
        (16, "float16", "F16"),
        (16, "float32", "BF16"),
        (32, None, "F32"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_not_packed(
    family: str, bits: int | None, said: str | None, dtype: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {} if said is None else {"torch_dtype": said}
    made = small(family, tmp_path, bits=bits, **changes)
    assert {each.dtype for each in made.tensors.values()} == {dtype}


def test_names_and_digests_tell_models_apart(tmp_path: Path) -> None:
    one, same, other, wider = (
        small("llama", tmp_path, seed=1),
        small("llama", tmp_path, seed=1),
        small("llama", tmp_path, seed=2),
        small("llama", tmp_path, seed=1, bits=8),
    )
    assert (one.name, one.digest) == (same.name, same.digest)
    assert len({one.digest, other.digest, wider.digest}) == 3
    assert len({one.name, other.name, wider.name}) == 3
    assert one.name == f"random-llama-4bit-{one.digest[:8]}"


def test_where_geometries_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "config.json"
    path.write_text(json.dumps(random_models.config("qwen3")))
    names = [random_model.random_model(where).name for where in (path, str(path), path.parent)]
    assert len(set(names)) == 1
    assert names[0].startswith("random-mine-bfloat16-")
    assert random_model.random_model("LLAMA-3.2-1B").name.startswith("random-llama-3.2-1b-")
    assert random_model.random_model("pocket").layers == 6
    with pytest.raises(NotFound, match="no geometry called 'llama-3") as error:
        random_model.random_model("llama-3.2-1")
    assert "llama-3.2-1b" in (error.value.hint or "")
    with pytest.raises(NotFound, match=r"no config\.json"):
        random_model.random_model(tmp_path)


# ------------------------------------------------------------------------- writing


@pytest.mark.parametrize("bits", [4, 16])
def test_what_is_written_is_what_was_described(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 100_000
    monkeypatch.setattr(random_model, "FILE_BYTES", bound)
    made = small("qwen3_moe", tmp_path, bits=bits)
    made.write(tmp_path / "new" / "model")
    found = ModelDirectory.open(tmp_path / "new" / "model")
    assert found.digest == made.digest
    assert found.tensors == made.directory().tensors
    assert len(found.files) > 2
    largest = max(info.nbytes for info in found.tensors.values())
    for header in found.files:
        assert header.size - header.data_start <= max(bound, largest)
    # mlx-lm's own reader finds the same shapes, and numbers everywhere.
    for file in found.files:
        arrays = mx.load(str(found.path / file.file))
        assert isinstance(arrays, dict)
        for name, array in arrays.items():
            assert array.shape == made.tensors[name].shape
            assert len(np.unique(np.array(array.astype(mx.float32)))) > min(8, array.size) // 2


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    made = small("llama", tmp_path)
    with pytest.raises(CannotCreate, match="not empty"):
        made.write(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "llama.json"]
    with pytest.raises(ExoError, match="cannot write"):
        made.write(tmp_path / "llama.json")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small("llama", tmp_path)

    def full(tensor: Any, seed: int) -> Any:
        if "layers.2" in tensor.name:
            raise OSError(28, "No space left on device")
        return random_values.pieces(tensor, seed)

    monkeypatch.setattr(random_files, "pieces", full)
    with pytest.raises(CannotCreate, match="no space left"):
        made.write(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


# ------------------------------------------------------------------------- nonsense


@pytest.mark.parametrize(
    ("bits", "group", "problem"),
    [
        (7, None, "no weights of 7 bits"),
        (1, 64, "group size"),
        (None, 64, "group size"),
        (16, 64, "group size"),
    ],
)
def test_bits_and_groups_that_do_not_go_together(bits: int | None, group: int | None, problem: str) -> None:
    with pytest.raises(UsageProblem, match=problem):
        random_model.random_model("llama-3.2-1b", bits=bits, group=group)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_hidden_layers": 0}, "without layers"),
        ({"num_hidden_layers": 10**6}, "out of range"),
        ({"hidden_size": 2**40}, "no usable shape"),
        ({"vocab_size": 0}, "would be"),
        ({"torch_dtype": "float8"}, "dtype 'float8'"),
        ({"model_type": "mamba2"}, "model family 'mamba2'"),
        ({"model_type": None}, "no usable model_type"),
        ({"model_file": "evil.py"}, "runs none"),
        ({"quantization": 4}, "not an object"),
        ({"quantization": {"bits": 4, "group_size": 0}}, "groups of 0"),
        ({"quantization": {"bits": True, "group_size": 64}}, "True bits"),
        ({"quantization": {"bits": 4, "group_size": 16, "mode": "nvfp4"}}, "nvfp4"),
        ({"quantization": {"bits": 8, "group_size": 32, "mode": "mxfp8"}}, "mxfp8"),
        (
            {
                "quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 4, "group_size": 128}},
                "hidden_size": 192,
            },
            "is 192 wide",
        ),
    ],
)
def test_nonsense_is_refused_in_a_sentence(changes: dict[str, Any], problem: str) -> None:
    settings = random_models.config("mistral", **changes)
    with pytest.raises(BadData, match=problem):
        _ = RandomModel("x", json.dumps(settings).encode(), 0).digest


def test_a_seed_has_64_bits() -> None:
    data = json.dumps(random_models.config("llama")).encode()
    assert len(RandomModel("x", data, 2**64 - 1).digest) == 64
    for seed in (-1, 2**64):
        with pytest.raises(BadData, match="seed"):
            _ = RandomModel("x", data, seed).digest


NONSENSE: tuple[Any, ...] = (None, True, -1, 0, 7, 2**31, 1.5, "x", [], [[]], {}, {"bits": 4})


@pytest.mark.parametrize("family", sorted(ROWS))
def test_any_value_in_any_place_is_taken_or_refused(family: str) -> None:
    settings = random_models.config(family)
    for key in settings:
        for value in NONSENSE:
            # Anything but BadData would end the test.
            with suppress(BadData):
                assert len(RandomModel("x", json.dumps({**settings, key: value}).encode(), 0).digest) == 64
