"""What a stage really takes in memory at Llama-3.2-1B's geometry, beside what its own tensors take.

Random weights, 4 bits, written as a directory like any other; two and three stages, each a process of its
own. Resident means the process's private and shared pages that are in memory now (Rss), read after load
and again after an answer. The base is what an engine process takes whose stage is next to nothing; it is
measured in the same run with a tiny model. Exit code 80 says that the design's target was missed.
"""

import asyncio
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.machine import machine
from exo_cli.trust.keyring import KeyringSource
from tests.support import tiny_models
from tests.support.cluster import Shard, loaded, shards

HERE = Path(__file__).parent
TARGET: Final = 0.15
GROUP: Final = 64
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCAB = 2048, 16, 32, 8, 64, 8192, 128_256
CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "quantization": {"group_size": GROUP, "bits": 4},
}
CUTS = ((0, 8, 16), (0, 5, 10, 16))
MEMORY_BYTES = 6 << 30


def write(directory: Path) -> None:
    """A model directory with random weights."""
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        size = (rows, columns // 8)
        tensors[f"{name}.weight"] = random.integers(0, 2**32, size, dtype=np.uint32)
        shape = (rows, columns // GROUP)
        scale = np.float16(columns**-0.5 / 7.5)
        tensors[f"{name}.scales"] = np.full(shape, scale, np.float16)
        tensors[f"{name}.biases"] = np.full(shape, -7.5 * scale, np.float16)

    matrix("model.embed_tokens", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        matrix(f"{at}.self_attn.q_proj", HEADS * HEAD, HIDDEN)
        matrix(f"{at}.self_attn.k_proj", KV_HEADS * HEAD, HIDDEN)
        matrix(f"{at}.self_attn.v_proj", KV_HEADS * HEAD, HIDDEN)
        matrix(f"{at}.self_attn.o_proj", HIDDEN, HEADS * HEAD)
        matrix(f"{at}.mlp.gate_proj", INNER, HIDDEN)
        matrix(f"{at}.mlp.up_proj", INNER, HIDDEN)
        matrix(f"{at}.mlp.down_proj", HIDDEN, INNER)
        tensors[f"{at}.input_layernorm.weight"] = np.ones(HIDDEN, np.float16)
        tensors[f"{at}.post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float16)
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float16)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))


def resident(shard: Shard) -> int:
    """Of the one engine process of a node."""
    (engine,) = shard.engines
    return psutil.Process(engine.pid).memory_info().rss


async def base(model: Path, nodes: list[Shard]) -> int:
    """What an engine takes that holds next to nothing, after its first answer."""
    source = KeyringSource()
    async with loaded(source, model, (0, 4), nodes[:1]) as driven:
        await driven.tokens([5, 6, 7], 3)
        return resident(nodes[0])


async def measure(model: Path, nodes: list[Shard], base_bytes: int) -> list[dict[str, Any]]:
    source = KeyringSource()
    rows = []
    for bounds in CUTS:
        over = nodes[: len(bounds) - 1]
        async with loaded(source, model, bounds, over, memory_bytes=MEMORY_BYTES) as driven:
            after_load = [resident(shard) for shard in over]
            await driven.tokens([5, 6, 7], 2)
            for shard, stage, layers, early in zip(
                over, driven.stages, pairwise(bounds), after_load, strict=True
            ):
                own, late = stage.weights_bytes, resident(shard)
                rows.append(
                    {
                        "stages": len(over),
                        "layers": list(layers),
                        "own_tensors_bytes": own,
                        "resident_after_load_bytes": early,
                        "resident_after_answer_bytes": late,
                        "over_tensors_and_base": round(late / (own + base_bytes) - 1, 4),
                    }
                )
                print(
                    f"{len(over)} stages, {layers[0]:2}-{layers[1] - 1:2}: own tensors {own / 1e6:4.0f} MB,"
                    f" resident {early / 1e6:5.0f} MB loaded, {late / 1e6:5.0f} MB after an answer:"
                    f" {rows[-1]['over_tensors_and_base']:+.1%} of tensors and base"
                )
    return rows


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place, "home")
        home.mkdir()
        os.environ["HOME"] = str(home)
        mx.disable_compile()
        tiny = tiny_models.build("llama", Path(place, "tiny"))
        model = Path(place, "model")
        write(model)
        with shards(home, "a", "b", "c", arguments=("--memory", "7GiB")) as nodes:
            base_bytes = asyncio.run(base(tiny, nodes))
            print(f"base: {base_bytes / 1e6:.0f} MB, an engine whose stage is next to nothing")
            rows = asyncio.run(measure(model, nodes, base_bytes))
    document = {
        "schema": "exo.benchmark-memory/1",
        "machine": machine(),
        "conditions": "Llama-3.2-1B geometry, random 4-bit weights (groups of 64); one host; Rss of engines",
        "base_bytes": base_bytes,
        "target": TARGET,
        "results": rows,
    }
    path = HERE / "results" / "memory.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    missed = [row for row in rows if abs(row["over_tensors_and_base"]) > TARGET]
    return 80 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
