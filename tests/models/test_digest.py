"""A model's digest: what it depends on, and what it does not."""

import shutil
from pathlib import Path

from exo_cli.models.digest import model_digest
from exo_cli.models.directory import ModelDirectory
from tests.support.checkpoints import write_model


def test_it_is_a_known_number() -> None:
    assert (
        model_digest(b"{}", [b"\1" * 32, b"\2" * 32])
        == model_digest(b"{}", [b"\2" * 32, b"\1" * 32])
        == "2296b96014fc2a38a6b979447f2918be267b2d998636b1de87a802c668f633c8"
    )


def test_it_does_not_depend_on_the_names_of_the_files(tmp_path: Path) -> None:
    write_model(tmp_path / "one", files={"model-1.safetensors": ["a", "b"], "model-2.safetensors": ["c"]})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for old, new in (("model-1", "model-9"), ("model-2", "model-0")):
        (tmp_path / "two" / f"{old}.safetensors").rename(tmp_path / "two" / f"{new}.safetensors")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_it_depends_on_the_configuration_and_on_every_header(tmp_path: Path) -> None:
    write_model(tmp_path / "one", files={"model.safetensors": ["a", "b"]})
    write_model(tmp_path / "config", files={"model.safetensors": ["a", "b"]}, config={"hidden_size": 65})
    write_model(tmp_path / "name", files={"model.safetensors": ["a", "x"]})
    write_model(tmp_path / "split", files={"model-1.safetensors": ["a"], "model-2.safetensors": ["b"]})
    assert len({digest(tmp_path / name) for name in ("one", "config", "name", "split")}) == 4


def test_a_repeated_header_counts() -> None:
    assert model_digest(b"{}", [b"\1" * 32]) != model_digest(b"{}", [b"\1" * 32, b"\1" * 32])


def digest(path: Path) -> str:
    return ModelDirectory.open(path).digest
