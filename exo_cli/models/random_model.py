"""A model with random weights at a real model's geometry: a configuration and a seed, and no files.

Every machine makes the same weights from the two, each for its own layers, so nothing is downloaded or
sent. Described as a directory that might have been written: the same table of tensors, the same digest;
`write` writes it. The seed stands in the files' headers, so it counts in the digest. Knows nothing of any
tensor library and imports numpy only to write.
"""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from exo_cli.errors import BadData, InputOutput, NotFound, UsageProblem
from exo_cli.models import catalogue
from exo_cli.models.directory import MAX_CONFIG_BYTES, ModelDirectory, parse_config
from exo_cli.models.geometry import geometry as geometry_of
from exo_cli.models.geometry import text_config
from exo_cli.models.parts import Config
from exo_cli.models.random_tensors import AFFINE_BITS, MXFP4_GROUP, VERSION, RandomTensor, full_name, tensors
from exo_cli.models.safetensors import BITS, Header, parse_header, shown

FILE_BYTES: Final = 2 << 30
"""A file of a model that is written is no larger, unless one tensor is."""
MAX_SEED: Final = 2**64 - 1
DEFAULT_GROUP: Final = 64
_ALWAYS: Final = {"group_size": 64, "bits": 8}
_FOREIGN: Final = ("quantization_config", "compression_config")
"""What other programs write there of how they packed the weights."""
_WIDE: Final = {16: ("bfloat16", "float16"), 32: ("float32",)}
"""Bits that are no packing: which dtypes they stand for, the first of them by default."""


@dataclass(frozen=True)
class RandomModel:
    """`config` is config.json as it would stand in the directory; whoever has both has the model.

    `name` is what nodes show. Everything is worked out when it is first asked for: BadData says then that
    the configuration makes no model.
    """

    name: str
    config: bytes
    seed: int

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, checked."""
        if len(self.config) > MAX_CONFIG_BYTES:
            raise BadData(f"config.json is larger than {MAX_CONFIG_BYTES // 2**20} MiB")
        if not 0 <= self.seed <= MAX_SEED:
            raise BadData(f"the seed {shown(self.seed)} is not between 0 and {MAX_SEED}")
        return parse_config(self.config)

    @cached_property
    def tensors(self) -> dict[str, RandomTensor]:
        """Every tensor by its name in the files."""
        return {tensor.name: tensor for tensor in tensors(self.settings)}

    @cached_property
    def headers(self) -> dict[str, bytes]:
        """What each file begins with, by the file's name."""
        files: list[list[RandomTensor]] = [[]]
        held = 0
        for tensor in self.tensors.values():
            size = _nbytes(tensor)
            if files[-1] and held + size > FILE_BYTES:
                files.append([])
                held = 0
            files[-1].append(tensor)
            held += size
        if len(files) == 1:
            return {"model.safetensors": _header(files[0], self.seed)}
        return {
            f"model-{number:05d}-of-{len(files):05d}.safetensors": _header(file, self.seed)
            for number, file in enumerate(files, 1)
        }

    @property
    def digest(self) -> str:
        """The digest of the directory that `write` writes."""
        return self.directory().digest

    @property
    def layers(self) -> int:
        return len(geometry_of(self.settings).layers)

    @property
    def vocabulary(self) -> int:
        """Token ids are smaller than this."""
        return geometry_of(self.settings).embedding["embed_tokens.weight"].shape[0]

    def directory(self, path: Path | None = None) -> ModelDirectory:
        """As if it had been written to `path` and opened; nothing need be there."""
        files = self._files
        table = {info.name: info for header in files for info in header.tensors}
        return ModelDirectory(path or Path(self.name), self.settings, self.config, files, table, ())

    def write(self, directory: Path) -> None:
        """Write a directory that mlx-lm opens, with the very weights that nodes make; config.json comes last.

        The directory must be new or empty.
        """
        from exo_cli.models.random_files import write

        write(self, directory)

    @cached_property
    def _files(self) -> tuple[Header, ...]:
        found = []
        for file, header in self.headers.items():
            (end,) = struct.unpack_from("<Q", header)
            names = json.loads(header[8 : 8 + end])
            size = len(header) + max(
                entry["data_offsets"][1] for name, entry in names.items() if name != "__metadata__"
            )
            found.append(parse_header(header, file=file, size=size))
        return tuple(found)


def random_model(
    geometry: str | Path, *, bits: int | None = None, group: int | None = None, seed: int = 0
) -> RandomModel:
    """Random weights at the geometry of the catalogue's model of that name, or of a config.json.

    `bits`: 2 to 8 for affine groups (of `group`, else 64; gpt-oss at 4 bits is packed as it was published
    unless a group is said), 16 or 32 for none; None for what the configuration says. The seed decides the
    weights. Raises NotFound or BadData.
    """
    stem, config = _look_up(geometry)
    config = _formatted(config, bits, group)
    made = RandomModel(stem, json.dumps(config, indent=1, sort_keys=True).encode() + b"\n", seed)
    return RandomModel(f"random-{stem}-{_format_name(config)}-{made.digest[:8]}", made.config, seed)


def _look_up(geometry: str | Path) -> tuple[str, dict[str, Any]]:
    """A short name, and the configuration; what is on the disk comes before a name of the catalogue."""
    path = Path(geometry)
    if path.is_dir():
        path /= "config.json"
    if path.is_file():
        # config.json is called like every other: its directory says more.
        stem = path.resolve().parent.name if path.name == "config.json" else path.stem
        return stem or "model", _read(path)
    row = catalogue.find(str(geometry))
    if row is not None:
        return row.name, dict(row.config)
    if str(geometry) == catalogue.POCKET:
        return catalogue.POCKET, _read(catalogue.POCKET_DIRECTORY / "config.json")
    if path.name == "config.json":
        raise NotFound(f"there is no config.json in {path.parent}")
    near = catalogue.near(str(geometry))
    raise NotFound(
        f"there is no geometry called {shown(str(geometry))}, and no such file",
        hint=f"Did you mean {', '.join(near)}?"
        if near
        else "Name a model of the catalogue, or a config.json.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as source:
            data = source.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path.name} in {path.parent}") from error
    except OSError as error:
        raise InputOutput(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise BadData(f"{path.name} is larger than {MAX_CONFIG_BYTES // 2**20} MiB")
    try:
        return parse_config(data)
    except BadData as error:
        said = error.message.replace("config.json", str(path), 1)
        raise BadData(said, hint="Name a model's config.json, or a model of the catalogue.") from error


# ------------------------------------------------------------------------- formats


def _formatted(config: dict[str, Any], bits: int | None, group: int | None) -> dict[str, Any]:
    """The configuration with its `quantization` as asked for, and nothing of another program's."""
    if group is not None and bits not in AFFINE_BITS:
        raise UsageProblem(
            "a group size needs bits that are packed in groups", hint="Say 4 bits, for example."
        )
    if bits is not None and bits not in AFFINE_BITS and bits not in _WIDE:
        known = ", ".join(map(str, (*AFFINE_BITS, *_WIDE)))
        raise UsageProblem(f"there are no weights of {bits} bits", hint=f"There are {known}.")
    foreign = _foreign(config)
    block = config.get("quantization")
    config = {key: value for key, value in config.items() if key not in ("quantization", *_FOREIGN)}
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config["text_config"] = {key: value for key, value in inner.items() if key not in _FOREIGN}
    if bits is None and block is not None:
        return {**config, "quantization": block}
    native = config.get("model_type") == "gpt_oss"
    if native and group is None and (bits == 4 or (bits is None and foreign == "mxfp4")):
        return {**config, "quantization": _experts_in_mxfp4(config)}
    if bits in _WIDE:
        return _in_dtype(config, _WIDE[bits])
    return (
        config if bits is None else {**config, "quantization": _affine(config, bits, group or DEFAULT_GROUP)}
    )


def _foreign(config: Config) -> str | None:
    other = text_config(config).get("quantization_config")
    method = other.get("quant_method") if isinstance(other, dict) else None
    return method if isinstance(method, str) else None


def _affine(config: Config, bits: int, group: int) -> dict[str, Any]:
    """mlx-lm's own block, routers that stay at 8 bits named one by one."""
    named = {
        full_name(short, config).removesuffix(".weight"): _ALWAYS
        for short, weight in geometry_of(config).weights()
        if weight.always_8_bits and weight.shape[-1] % group == 0 == weight.shape[-1] % _ALWAYS["group_size"]
    }
    return {"group_size": group, "bits": bits, **named}


def _experts_in_mxfp4(config: Config) -> dict[str, Any]:
    """As gpt-oss was published for mlx-lm: experts in mxfp4, every other matrix at 8 bits."""
    named: dict[str, Any] = {
        full_name(short, config).removesuffix(".weight"): _ALWAYS
        if weight.shape[-1] % _ALWAYS["group_size"] == 0
        else False
        for short, weight in geometry_of(config).weights()
        if weight.is_matrix and weight.experts == 1
    }
    return {"group_size": MXFP4_GROUP, "bits": 4, "mode": "mxfp4", **named}


def _in_dtype(config: dict[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    own = text_config(config).get("torch_dtype") or text_config(config).get("dtype")
    dtype = own if own in allowed else allowed[0]
    without = {key: value for key, value in config.items() if key != "dtype"}
    inner = without.get("text_config")
    if isinstance(inner, dict):
        kept = {key: value for key, value in inner.items() if key not in ("dtype", "torch_dtype")}
        without["text_config"] = kept
    return {**without, "torch_dtype": dtype}


def _format_name(config: Config) -> str:
    block = config.get("quantization")
    if isinstance(block, dict):
        return "mxfp4" if block.get("mode") == "mxfp4" else f"{block.get('bits')}bit"
    return str(text_config(config).get("torch_dtype") or text_config(config).get("dtype") or "bfloat16")


# ------------------------------------------------------------------------- headers


def _nbytes(tensor: RandomTensor) -> int:
    items = BITS[tensor.dtype]
    for size in tensor.shape:
        items *= size
    return items // 8


def _header(file: list[RandomTensor], seed: int) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {"format": "mlx", "exo_random": str(VERSION), "exo_seed": str(seed)}
    }
    at = 0
    for tensor in file:
        end = at + _nbytes(tensor)
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
