"""What others measured on clusters against what was predicted for them: every ratio and its residual.

The predictions are read from their file, as committed; python -m benchmarks.published_cases makes that anew.
Exit code 80: fewer than two thirds within 20 %, or an order that is the wrong way round.
"""

import json
import sys
from typing import Final

from benchmarks.published_cases import HERE, PREDICTIONS

MEASURED: Final = {
    "llama-3b-2-nodes": 44.4 / 49.3,
    "llama-3b-3-nodes": 39.7 / 49.3,
    "llama-3b-2-nodes-many": 95.7 / 49.3,
    "llama-3b-3-nodes-many": 108.8 / 49.3,
    "qwen3-235b-tensor-4": 31.9 / 19.5,
    "qwen3-235b-rpc-4": 15.2 / 20.4,
    "deepseek-to-llama-70b": 5.37 / 3.89,
    "tensor-2": 1.8,
    "tensor-4": 3.2,
}
WITHIN: Final = 0.2


def main() -> int:
    document = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    rows, right = [], True
    for each in document["predictions"]:
        measured, predicted = MEASURED[each["name"]], each["ratio"]
        residual = predicted / measured - 1
        right = right and (predicted > 1) == (measured > 1)
        rows.append(
            {
                "name": each["name"],
                "measured": round(measured, 3),
                "predicted": predicted,
                "residual": round(residual, 3),
                "same_side_of_one": (predicted > 1) == (measured > 1),
            }
        )
        print(f"{measured:6.3f} measured, {predicted:6.3f} predicted, {residual:+5.0%}: {each['what']}")
    close = sum(abs(row["residual"]) <= WITHIN for row in rows)
    print(
        f"{close} of {len(rows)} within {WITHIN:.0%}; slower and faster {'all' if right else 'not all'} right"
    )
    result = {"schema": "exo.benchmark-published/1", "within": WITHIN, "close": close, "rows": rows}
    path = HERE / "results" / "published.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if right and 3 * close >= 2 * len(rows) else 80


if __name__ == "__main__":
    sys.exit(main())
