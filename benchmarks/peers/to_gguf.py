"""An mlx-lm directory as GGUF files, in several types at once: `python -m … DIRECTORY TYPE=FILE ...`.

Runs in the harness's own environment (numpy and gguf, no MLX), one tensor at a time. Matrices take the
type that is asked for, vectors stay float32. The source's floats are the original; a quantized source is
expanded first. The vocabulary is made up: token 5 is written `<5>`, so that any sequence of ids can be
given to a program that only takes text. Knows the llama and qwen3 families and nothing of speed.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.layout import Floats, expanded, head_width, permuted, rope_factors
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import TensorInfo

ARCHITECTURES: Final = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
TYPES: Final = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_PARTS: Final = (".scales", ".biases")
_FACTORS: Final = "rope_freqs.weight"


@dataclass(frozen=True)
class Output:
    """One file that is being written."""

    writer: gguf.GGUFWriter
    kind: gguf.GGMLQuantizationType

    def kind_of(self, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        return self.kind if len(shape) > 1 else gguf.GGMLQuantizationType.F32


def convert(directory: Path, outputs: dict[str, Path]) -> None:
    """Write the model as each of these types."""
    model = ModelDirectory.open(directory)
    if model.model_type not in ARCHITECTURES:
        raise SystemExit(f"{model.model_type} has no way to GGUF here; {', '.join(ARCHITECTURES)} have")
    names = gguf.get_tensor_name_map(ARCHITECTURES[model.model_type], model.config["num_hidden_layers"])
    files = []
    for kind, path in outputs.items():
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.model_type]])
        _describe(writer, model.config, TYPES[kind][1])
        files.append(Output(writer, TYPES[kind][0]))
    shapes = dict(_shapes(model))
    factors = rope_factors(model.config)
    if factors is not None:
        shapes[_FACTORS] = factors.shape
    for name, shape in shapes.items():
        for file in files:
            kind = file.kind_of(shape)
            size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
            known_as = _gguf_name(names, name)
            file.writer.add_tensor_info(known_as, shape, np.dtype(np.float32), size, raw_dtype=kind)
    for file in files:
        file.writer.write_header_to_file()
        file.writer.write_kv_data_to_file()
        file.writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        values = factors if name == _FACTORS and factors is not None else _values(model, name)
        values = _permuted(values, name, model)
        for file in files:
            file.writer.write_tensor_data(gguf.quants.quantize(values, file.kind_of(shape)))
    for file in files:
        file.writer.close()


def _permuted(values: Floats, name: str, model: ModelDirectory) -> Floats:
    if model.model_type != "llama":
        return values
    if ".q_proj." in name:
        return permuted(values, model.config["num_attention_heads"])
    if ".k_proj." in name:
        return permuted(values, model.config["num_key_value_heads"])
    return values


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], file_type: gguf.LlamaFileType) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{number}>" for number in range(config["vocab_size"])])
    # User-defined tokens are taken out of a text before anything else is done with it.
    writer.add_token_types([gguf.TokenType.USER_DEFINED] * config["vocab_size"])
    writer.add_token_merges(["a b"])
    writer.add_add_bos_token(False)


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    if name == _FACTORS:
        return name
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise SystemExit(f"{name} has no name in GGUF")
    return str(found)


def _shapes(model: ModelDirectory) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of every tensor once it is expanded."""
    for name, info in model.tensors.items():
        if name.endswith(_PARTS):
            continue
        scales = model.tensors.get(f"{name.removesuffix('.weight')}.scales")
        if scales is None:
            yield name, info.shape
        else:
            yield name, (info.shape[0], scales.shape[1] * _quantization(model)["group_size"])


def _quantization(model: ModelDirectory) -> dict[str, Any]:
    found = model.config["quantization"]
    if found.get("mode", "affine") != "affine":
        raise SystemExit(f"{found['mode']} weights have no way to GGUF here")
    return dict(found)


def _values(model: ModelDirectory, name: str) -> Floats:
    stem = name.removesuffix(".weight")
    scales = model.tensors.get(f"{stem}.scales")
    if scales is None:
        return _floats(model, model.tensors[name])
    packed = _raw(model, model.tensors[name], np.dtype(np.uint32))
    biases = _floats(model, model.tensors[f"{stem}.biases"])
    return expanded(packed, _floats(model, scales), biases, _quantization(model)["bits"])


def _raw(model: ModelDirectory, info: TensorInfo, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(model.path / info.file, dtype, "r", info.start, info.shape)


def _floats(model: ModelDirectory, info: TensorInfo) -> Floats:
    match info.dtype:
        case "BF16":
            halves = _raw(model, info, np.dtype(np.uint16)).astype(np.uint32)
            return (halves << np.uint32(16)).view(np.float32)
        case "F16" | "F32":
            wide = np.dtype(np.float16 if info.dtype == "F16" else np.float32)
            return np.asarray(_raw(model, info, wide), np.float32)
    raise SystemExit(f"{info.name} is {info.dtype}, which has no way to GGUF here")


def main() -> None:
    directory, *wanted = sys.argv[1:]
    outputs = {kind: Path(path) for kind, _, path in (each.partition("=") for each in wanted)}
    convert(Path(directory), outputs)
    print(json.dumps({"written": {kind: str(path) for kind, path in outputs.items()}}))


if __name__ == "__main__":
    main()
