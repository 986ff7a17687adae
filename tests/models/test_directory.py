"""Model directories: both layouts, what is missing, what lies, and names that lead elsewhere."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, NotFound
from exo_cli.models.directory import MAX_CONFIG_BYTES, ModelDirectory
from tests.support.checkpoints import CONFIG, safetensors, write_index, write_model

TWO = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}


def test_one_file_without_an_index(tmp_path: Path) -> None:
    model = ModelDirectory.open(write_model(tmp_path / "m", files={"model.safetensors": ["a", "b"]}))
    assert set(model.tensors) == {"a", "b"}
    assert model.model_type == "llama"
    assert model.weights_bytes == 8
    assert not model.has_tokenizer
    assert model.tokenizer_files == ()


def test_several_files_with_an_index_and_a_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files=TWO, index=True)
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("")
    (path / "README.md").write_text("")
    model = ModelDirectory.open(path)
    assert {info.name: info.file[:11] for info in model.tensors.values()} == {
        "a": "model-00001",
        "b": "model-00001",
        "c": "model-00002",
    }
    assert model.has_tokenizer
    assert set(model.tokenizer_files) == {"tokenizer.json", "chat_template.jinja"}


def test_other_file_names_count_only_if_an_index_names_them(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files={"weights.safetensors": ["a"]})
    with pytest.raises(NotFound, match="no safetensors files"):
        ModelDirectory.open(path)
    write_index(path, {"a": "weights.safetensors"})
    assert set(ModelDirectory.open(path).tensors) == {"a"}
    (path / "model.safetensors").write_bytes(safetensors(["b"]))
    with pytest.raises(BadData, match="names tensor 'a'"):
        ModelDirectory.open(path)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    real = write_model(tmp_path / "blobs", files=TWO)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    assert ModelDirectory.open(linked).digest == ModelDirectory.open(real).digest


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        ModelDirectory.open(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match="is a file"):
        ModelDirectory.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"no config\.json"):
        ModelDirectory.open(tmp_path / "empty")
    path = write_model(tmp_path / "m", files=TWO, index=True)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model-00002-of-00002\.safetensors is not in"):
        ModelDirectory.open(path)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "..",
        "model.bin",
        3,
        None,
        ".safetensors",
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(file: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(["a"]))
    path = write_model(tmp_path / "m", files={"model.safetensors": ["a"]})
    write_index(path, {"a": file})
    with pytest.raises(BadData, match="no file name here"):
        ModelDirectory.open(path)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a": "model-00002-of-00002.safetensors"}, "puts tensor 'a'"),
        ({"z": "model-00001-of-00002.safetensors"}, "names tensor 'z'"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_lies(weight_map: Any, says: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files=TWO)
    write_index(path, weight_map)
    with pytest.raises(BadData, match=says):
        ModelDirectory.open(path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    files = {"model-1.safetensors": ["a"], "model-2.safetensors": ["a"]}
    with pytest.raises(BadData, match=r"'a' is in model-1\.safetensors and again"):
        ModelDirectory.open(write_model(tmp_path / "m", files=files))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"{}", "no usable model_type"),
        (b'{"model_type": "../llama"}', "no usable model_type"),
        (b'{"model_type": ["llama"]}', "no usable model_type"),
        (b" " * (MAX_CONFIG_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_a_configuration_that_is_none(config: bytes, says: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files={"model.safetensors": ["a"]})
    (path / "config.json").write_bytes(config)
    with pytest.raises(BadData, match=says):
        ModelDirectory.open(path)


@pytest.mark.parametrize(
    "lie",
    [
        {"num_hidden_layers": 10**9},
        {"n_layer": 5000},
        {"num_experts": 10**7},
        {"n_routed_experts": 10**7},
        {"hidden_size": 2**60},
        {"vocab_size": -(2**60)},
        {"text_config": {"num_hidden_layers": 10**6}},
        {"layer_types": ["full_attention"] * 100_000},
    ],
)
def test_counts_beyond_reason_are_refused_before_anything_is_built(
    lie: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=r"config\.json: "):
        ModelDirectory.open(write_model(tmp_path / "m", files={"model.safetensors": ["a"]}, config=lie))


def test_large_models_are_within_reason(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 126,
        "n_routed_experts": 384,
        "max_position_embeddings": 10_485_760,
        "vocab_size": 262_144,
        "num_nextn_predict_layers": 1,
        "eos_token_id": [1, 2],
    }
    ModelDirectory.open(write_model(tmp_path / "m", files={"model.safetensors": ["a"]}, config=config))


def test_a_program_in_the_directory_is_never_run(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files={"model.safetensors": ["a"]}, config={"model_file": "model.py"})
    (path / "model.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BadData, match="program of its own"):
        ModelDirectory.open(path)


def test_side_files_are_checked_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files={"model.safetensors": ["a"]})
    (path / "generation_config.json").write_text("[1]")
    with pytest.raises(BadData, match=r"generation_config\.json is not a JSON object"):
        ModelDirectory.open(path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", files={"model.safetensors": ["a"]})
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    with pytest.raises(BadData, match="not a regular file"):
        ModelDirectory.open(path)


def test_the_configuration_is_kept_as_it_stands(tmp_path: Path) -> None:
    model = ModelDirectory.open(write_model(tmp_path / "m", files={"model.safetensors": ["a"]}))
    assert model.config == CONFIG == json.loads(model.config_bytes)
