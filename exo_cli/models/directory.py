"""A model's directory as it lies on disk, checked and with no tensor read.

Accepts what mlx-lm and Hugging Face write: config.json, `model*.safetensors` (or what
model.safetensors.index.json names), tokenizer files beside them. Names inside those files are never
followed out of the directory; links that somebody put into it are (the hub's cache is made of them).
Knows nothing of architectures, of which layer a tensor belongs to, or of any tensor library.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from exo_cli.errors import BadData, InputOutput, NotFound
from exo_cli.models.digest import model_digest
from exo_cli.models.safetensors import Header, TensorInfo, iter_tensors, read_header, shown

MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_FILES: Final = 4096
MAX_LAYERS: Final = 4096
MAX_EXPERTS: Final = 65_536
_LIMIT: Final = 2**53

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_SIDE_FILES: Final = ("generation_config.json", "hf_quant_config.json")
_INDEX: Final = "model.safetensors.index.json"
_MODEL_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}")
_COUNTS: Final = {"layer": MAX_LAYERS, "block": MAX_LAYERS, "expert": MAX_EXPERTS, "loop": MAX_LAYERS}
"""Config keys with these words that begin with a counting word say how many things are built."""
_COUNTING: Final = re.compile(r"^(n|num|depth|moe_num|linear_num)(_|$)|^n_?layers?$|_num_|^num")


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory: its configuration, its files' headers and one table of all tensors."""

    path: Path
    config: dict[str, Any]
    config_bytes: bytes
    files: tuple[Header, ...]
    tensors: dict[str, TensorInfo]
    tokenizer_files: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "ModelDirectory":
        """Reads config.json and the headers; says in one sentence what is missing or wrong."""
        if not path.is_dir():
            what = "is a file, not a directory" if path.exists() else "does not exist"
            raise NotFound(f"the model directory {path} {what}")
        raw = _read(path / "config.json", MAX_CONFIG_BYTES)
        config = parse_config(raw)
        for name in _SIDE_FILES:
            if (path / name).exists():
                _object(_read(path / name, MAX_CONFIG_BYTES), name)
        files = tuple(read_header(path / name) for name in _weight_files(path))
        tensors = _table(files)
        _check_index(path, tensors)
        present = tuple(name for name in TOKENIZER_FILES if (path / name).is_file())
        return cls(path, config, raw, files, tensors, present)

    @cached_property
    def digest(self) -> str:
        return model_digest(self.config_bytes, (header.sha256 for header in self.files))

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def has_tokenizer(self) -> bool:
        """Whether a fast tokenizer is there; a driver needs one, a stage does not."""
        return "tokenizer.json" in self.tokenizer_files

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as source:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadData(f"{path.name} is not a regular file")
            data = source.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no {path.name} in {path.parent}",
            hint="Name a directory that mlx-lm or Hugging Face wrote.",
        ) from error
    except OSError as error:
        raise InputOutput(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise BadData(f"{path.name} is larger than {limit_bytes // 2**20} MiB")
    return data


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise BadData(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise BadData(f"{name} is not JSON: {error}"[:300]) from error
    if not isinstance(value, dict):
        raise BadData(f"{name} is not a JSON object")
    return value


def parse_config(data: bytes) -> dict[str, Any]:
    """config.json as it may be believed: a model type that is a word, numbers within reason, no program."""
    config = _object(data, "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or _MODEL_TYPE.fullmatch(model_type) is None:
        raise BadData(f"config.json names no usable model_type: {shown(model_type)}")
    if config.get("model_file") is not None:
        raise BadData("this model wants to run a program of its own (config.json: model_file); exo runs none")
    problem = next(_bad_numbers(config, ""), None)
    if problem is not None:
        raise BadData(f"config.json: {problem}")
    return config


def _bad_numbers(value: object, path: str) -> Iterator[str]:
    """A configuration decides how much is built before any tensor is compared with it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _bad_numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if len(value) > MAX_EXPERTS:
            yield f"{path[:120]} has {len(value)} entries"
        for index, inner in enumerate(value):
            yield from _bad_numbers(inner, f"{path}[{index}]")
    elif isinstance(value, int) and not isinstance(value, bool):
        limit = _limit(path.rsplit(".", 1)[-1])
        if not -_LIMIT < value < limit:
            yield f"{path[:120]} is {shown(value)}, out of range"


def _limit(key: str) -> int:
    if _COUNTING.search(key) is not None:
        for word, limit in _COUNTS.items():
            if word in key:
                return limit + 1
    return _LIMIT


def _weight_files(path: Path) -> list[str]:
    names = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name.startswith("model") and entry.name.endswith(".safetensors")
    )
    named = sorted(set(_index(path).values()))
    for name in named:
        if not (path / name).exists():
            raise NotFound(
                f"{name} is not in {path}, though {_INDEX} names it", hint="Fetch the missing file."
            )
    names = names or named
    if not names:
        raise NotFound(
            f"there are no safetensors files in {path}",
            hint="exo reads models in mlx-lm's or Hugging Face's safetensors layout.",
        )
    if len(names) > MAX_FILES:
        raise BadData(f"{path} has {len(names)} safetensors files; at most {MAX_FILES} are read")
    return names


def _index(path: Path) -> dict[str, str]:
    """Tensor to file, as the index has it; empty without one."""
    if not (path / _INDEX).exists():
        return {}
    found = _object(_read(path / _INDEX, MAX_INDEX_BYTES), _INDEX).get("weight_map")
    if not isinstance(found, dict):
        raise BadData(f"{_INDEX} has no weight_map")
    for tensor, file in found.items():
        if not (isinstance(file, str) and _FILE_NAME.fullmatch(file) and file.endswith(".safetensors")):
            raise BadData(
                f"{_INDEX}: tensor {shown(tensor)} lies in {shown(file)}, which is no file name here"
            )
    return found


def _table(files: tuple[Header, ...]) -> dict[str, TensorInfo]:
    table: dict[str, TensorInfo] = {}
    for tensor in iter_tensors(files):
        other = table.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise BadData(f"tensor {shown(tensor.name)} is in {other.file} and again in {tensor.file}")
    if not table:
        raise BadData(f"{files[0].file} holds no tensor")
    return table


def _check_index(path: Path, table: dict[str, TensorInfo]) -> None:
    for name, file in _index(path).items():
        tensor = table.get(name)
        if tensor is None:
            raise BadData(f"{_INDEX} names tensor {shown(name)}, which is not in {file}")
        if tensor.file != file:
            raise BadData(f"{_INDEX} puts tensor {shown(name)} in {file}, but it is in {tensor.file}")
