"""A throw-away process that says how fast the engine computes on this machine, a line of JSON a format.

Run as `python -m exo_cli.engine.rates [--numerics fast]`. Random weights in the engine's own loader, a model
of few layers and one of more; what the further layers cost is the figure, and the rest is what a step costs
whatever is in it. The weights are what most checkpoints have beside packed integers, bfloat16, which engines
may keep as it is. The least of several rounds tells layers from the rest, and both are as much slower as the
middle round is than that. Knows nothing of nodes.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Final, Literal

import mlx.core as mx

from exo_cli.engine import stage
from exo_cli.engine.core import Open
from exo_cli.engine.scheduler import Row
from exo_cli.models.geometry import geometry
from exo_cli.models.random_model import RandomModel
from exo_cli.schemas.sampling import Sampling

FORMATS: Final = {"affine4": 4, "float32": 32}
"""By the names that plans use; `exact` computes in float32 what is not packed."""
WIDTHS: Final = (512, 2048)
"""The second one where the first is too quick to be timed, or may lie in a processor's cache."""
DEPTHS: Final = (2, 4)
"""Of one layer too much may stay in a processor's cache."""
QUICK_S: Final = 0.005
BATCHES: Final = (4, 8)
"""Rows of a step that are timed beside one row."""
ROUNDS_S: Final = 1.5
MIN_ROUNDS: Final = 3
MAX_ROUNDS: Final = 40
PROMPT: Final = 256
MEMORY_BYTES: Final = 2 << 30
"""All that a trial may take."""
_VOCABULARY: Final = 256

Numerics = Literal["exact", "fast"]


class Trial:
    """A model of random weights in memory."""

    def __init__(self, bits: int, width: int, layers: int, numerics: Numerics) -> None:
        self._model = RandomModel("trial", json.dumps(_config(bits, width, layers)).encode(), 0)
        core, said = stage.load(
            "",
            layers=(0, layers),
            layers_in_model=layers,
            memory_bytes=MEMORY_BYTES,
            random=self._model,
            numerics=numerics,
            progress=lambda doing, done, total: None,
        )
        self._compute = core.compute
        self._number = 0
        self.numerics: str = said["numerics"]
        self.chunk = min(PROMPT, core.scheduler.chunk_tokens)

    @property
    def layer_bytes(self) -> int:
        """Of one layer, as plans count them: what lies there in 16 bits counts as float32."""
        widened = {**self._model.settings, "torch_dtype": "float32"}
        infos = RandomModel("trial", json.dumps(widened).encode(), 0).directory().tensors.values()
        return sum(info.nbytes for info in infos if ".layers.0." in info.name)

    @property
    def layer_flop(self) -> float:
        """A row's."""
        weights = geometry(self._model.settings).layers[0].weights.values()
        return sum(2.0 * each.active_items for each in weights if each.is_matrix)

    def prefill_s(self) -> float:
        """A prompt's first piece."""
        return self._request(())[2]

    def decode_s(self, rows: int = 1) -> Callable[[], float]:
        """Gives a step's time at each call: the next token of each of so many requests."""
        requests = [self._request((1,)) for _ in range(rows)]
        at = 1

        def step() -> float:
            nonlocal at
            took_s = self._step([(held, Row(number, at, 1)) for number, held, _ in requests], [2] * rows)
            at += 1
            return took_s

        return step

    def _request(self, prompt: tuple[int, ...]) -> tuple[int, Any, float]:
        """Its number, what holds it, and how long its prompt took."""
        ids = prompt or tuple(1 + at % 7 for at in range(self.chunk))
        self._number += 1
        held, _ = self._compute.begin(Open(self._number, 1, ids, Sampling(temperature=0.0), MAX_ROUNDS + 2))
        return self._number, held, self._step([(held, Row(self._number, 0, len(ids)))], list(ids))

    def _step(self, rows: list[tuple[Any, Row]], ids: list[int]) -> float:
        began_s = time.perf_counter()
        self._compute.run_last(rows, ids, None, [True] * len(rows))
        return time.perf_counter() - began_s


def _config(bits: int, width: int, layers: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "head_dim": 64,
        "intermediate_size": 4 * width,
        "vocab_size": _VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    return config if bits == 32 else {**config, "quantization": {"group_size": 64, "bits": bits}}


def measure(name: str, numerics: Numerics, widths: tuple[int, ...] = WIDTHS) -> dict[str, Any]:
    """What plans want to know of a format."""
    for width in widths:
        shallow, deep = (Trial(FORMATS[name], width, layers, numerics) for layers in DEPTHS)
        token_s, step_s = _further(shallow.decode_s(), deep.decode_s())
        if token_s * DEPTHS[1] >= QUICK_S:
            break
    rows = deep.chunk = shallow.chunk = min(shallow.chunk, deep.chunk)
    prompt_s, _ = _further(shallow.prefill_s, deep.prefill_s)
    batches = [(n, _further(shallow.decode_s(n), deep.decode_s(n))[0]) for n in BATCHES]
    return {
        "format": name,
        "decode_bytes_per_s": deep.layer_bytes / token_s,
        "prefill_flop_per_s": rows * deep.layer_flop / prompt_s,
        "step_s": step_s,
        "batches": [{"rows": n, "times": took_s / token_s} for n, took_s in batches],
        "numerics": deep.numerics,
    }


def _further(shallow: Callable[[], float], deep: Callable[[], float]) -> tuple[float, float]:
    """What a further layer costs, and what stays without any: both in turns, so that both meet the same
    machine.

    Never more than an even share of the deeper one's time, and that where the two cannot be told apart.
    """
    took: list[tuple[float, float]] = []
    began_s = time.perf_counter()
    while len(took) < MIN_ROUNDS or (len(took) < MAX_ROUNDS and time.perf_counter() - began_s < ROUNDS_S):
        took.append((shallow(), deep()))
    few, many = min(each for each, _ in took), min(each for _, each in took)
    share = many / DEPTHS[1]
    further = (many - few) / (DEPTHS[1] - DEPTHS[0])
    a_layer = further if 0 < further < share else share
    usual = median(each for _, each in took) / many
    return a_layer * usual, max(0.0, many - DEPTHS[1] * a_layer) * usual


def report(numerics: Numerics) -> Iterator[dict[str, Any]]:
    """One format after the other."""
    for name in FORMATS:
        yield measure(name, numerics)


def main() -> None:
    """With its input the process ends, whatever it does."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    mx.set_cache_limit(0)
    for line in report("fast" if sys.argv[1:] == ["--numerics", "fast"] else "exact"):
        os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
