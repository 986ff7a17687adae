"""Writes the model directory: `python -m pocket.export --weights FOLDER`, with numpy alone.

What it writes is a llama model as mlx-lm saves one, in 4 bits. Knows nothing of training.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save

from pocket import vocabulary
from pocket.evaluate import MODEL
from pocket.rounding import BITS, GROUP, quantized

MAX_BYTES: Final = 4_000_000


def export(weights: Path, model: Path) -> int:
    """Writes `model` from what the trainer left in `weights`; the bytes of the directory."""
    model.mkdir(parents=True, exist_ok=True)
    shape = json.loads((weights / "shape.json").read_text(encoding="utf-8"))
    tokenizer = vocabulary.load(weights / "tokenizer.json")
    tensors: dict[str, Any] = {}
    for name, weight in load_file(weights / "weights.safetensors").items():
        if weight.ndim == 2:
            base = name.removesuffix(".weight")
            parts = quantized(weight)
            tensors |= dict(zip((f"{base}.{part}" for part in _PARTS), parts, strict=True))
        else:
            tensors[name] = weight.astype(np.float16)
    (model / "model.safetensors").write_bytes(save(tensors, metadata={"format": "mlx"}))
    end = vocabulary.end_id(tokenizer)
    _write(model / "config.json", _config(shape, end))
    _write(model / "tokenizer_config.json", vocabulary.config())
    _write(model / "generation_config.json", {"do_sample": False, "temperature": 0.0, "eos_token_id": end})
    shutil.copyfile(weights / "tokenizer.json", model / "tokenizer.json")
    size = sum(path.stat().st_size for path in model.iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"the model takes {size:,} bytes; {MAX_BYTES:,} are allowed")
    return size


_PARTS: Final = ("weight", "scales", "biases")


def _config(shape: dict[str, Any], end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "head_dim": shape["hidden"] // shape["heads"],
        "hidden_act": "silu",
        "vocab_size": shape["vocabulary"],
        "max_position_embeddings": shape["context"],
        "rms_norm_eps": shape["epsilon"],
        "rope_theta": shape["theta"],
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "eos_token_id": end,
        "quantization": {"group_size": GROUP, "bits": BITS},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pocket's model directory.")
    parser.add_argument("--weights", type=Path, required=True, help="the folder that pocket.train wrote")
    parser.add_argument("--model", type=Path, default=MODEL)
    given = parser.parse_args()
    print(f"{export(given.weights, given.model):,} bytes in {given.model}")


if __name__ == "__main__":
    main()
