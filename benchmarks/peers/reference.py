"""A small model that knows something, for perplexity: random weights would say nothing about rounding.

A llama of under a million float32 parameters, over bytes, trained once on the text of Python's own
language reference (which comes with every Python) for some minutes; its last tenth is kept back. Knows
nothing of formats.
"""

import json
import math
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.llama import Model, ModelArgs

from benchmarks.peers import places
from benchmarks.peers.weights import write

NAME: Final = "reference"
STEPS: Final = 600
BATCH: Final = 8
LENGTH: Final = 128
PEAK_RATE: Final = 3e-3
WARM_UP: Final = 40
KEPT_BACK: Final = 0.1
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}


def corpus() -> tuple[bytes, bytes]:
    """What it learns from, and what it never sees."""
    whole = "\n".join(str(topics[name]) for name in sorted(topics)).encode()
    border = int(len(whole) * (1 - KEPT_BACK))
    return whole[:border], whole[border:]


def directory() -> Path:
    return places.models() / f"{NAME}-f32"


def train() -> None:
    """Into `directory`, unless it is there."""
    if directory().exists():
        return
    mx.disable_compile()
    mx.random.seed(1)
    chance = np.random.default_rng(1)
    model = Model(ModelArgs.from_dict(CONFIG))
    # The layers' own default is far too large for an embedding that is also the head.
    model.update(tree_map(lambda each: each * 0.02 if each.shape[0] == 256 else each, model.parameters()))
    learned, _ = corpus()
    data = np.frombuffer(learned, np.uint8)
    optimizer = optim.AdamW(learning_rate=PEAK_RATE, betas=[0.9, 0.98], weight_decay=0.05)
    step = nn.value_and_grad(model, _loss)
    begun = time.monotonic()
    for number in range(STEPS):
        starts = chance.integers(0, len(data) - LENGTH - 1, BATCH)
        batch = mx.array(np.stack([data[start : start + LENGTH + 1] for start in starts]).astype(np.int32))
        optimizer.learning_rate = PEAK_RATE * _share(number)
        loss, gradients = step(model, batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if number % 50 == 0 or number == STEPS - 1:
            spent = time.monotonic() - begun
            print(
                f"reference model: step {number}, loss {loss.item():.3f}, {spent:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    weights = iter(tree_flatten(model.parameters()))
    write(directory(), weights, {**CONFIG, "torch_dtype": "float32"})


def _loss(model: Model, batch: mx.array) -> mx.array:
    logits = model(batch[:, :-1])
    loss: mx.array = nn.losses.cross_entropy(logits, batch[:, 1:], reduction="mean")
    return loss


def _share(step: int) -> float:
    """Of the peak rate: up in the beginning, then down along a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def main() -> None:
    """`python -m benchmarks.peers.reference FILE`: train, and write the ids of the text kept back."""
    train()
    Path(sys.argv[1]).write_text(json.dumps(list(corpus()[1])), encoding="utf-8")


if __name__ == "__main__":
    main()
