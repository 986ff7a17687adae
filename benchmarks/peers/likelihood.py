"""How likely a text is to a model, as mlx-lm defines the model, in float32: `python -m … IDS CONTEXT DIR...`.

The windows are those of llama-perplexity: of each `CONTEXT` ids the second half is judged. The first
directory is the original; what the others say is set against it, position by position (KL divergence).
This is what our exact numerics compute, to the order of additions. Knows nothing of speed.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import load_model


def judged(directory: Path, ids: list[int], context: int) -> tuple[mx.array, mx.array]:
    """The log-probabilities of all tokens at every judged position, and which token came."""
    model, _ = load_model(directory)
    wide = tree_map(lambda each: each.astype(mx.float32) if _is_float(each) else each, model.parameters())
    model.update(wide)
    first = context // 2
    rows, came = [], []
    for start in range(0, len(ids) - context + 1, context):
        window = ids[start : start + context]
        logits = model(mx.array([window]))[0, first : context - 1]
        rows.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(rows[-1])
        came += window[first + 1 :]
    return mx.concatenate(rows), mx.array(came)


def summary(found: mx.array, base: mx.array, came: mx.array) -> dict[str, float]:
    """Perplexity, and how far the distributions are from the original's on average."""
    said = mx.take_along_axis(found, came[:, None], axis=-1)
    apart = mx.sum(mx.exp(base) * (base - found), axis=-1)
    return {"perplexity": math.exp(-_mean(said)), "kl_divergence": _mean(apart)}


def _mean(array: mx.array) -> float:
    return float(np.mean(np.asarray(array)))


def _is_float(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def main() -> None:
    ids_file, context, *directories = sys.argv[1:]
    mx.disable_compile()
    ids = json.loads(Path(ids_file).read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    base: mx.array | None = None
    for name in directories:
        rows, came = judged(Path(name), ids, int(context))
        base = rows if base is None else base
        found[Path(name).name] = summary(rows, base, came)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
