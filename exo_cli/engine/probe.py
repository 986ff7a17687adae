"""A throw-away process that says what MLX finds on this machine, as one line of JSON.

Run as `python -m exo_cli.engine.probe`: whoever starts it stays free of MLX, and survives what a
broken driver does to it. Knows nothing of models.
"""

import json
import sys
from importlib import metadata
from typing import Any


def report() -> dict[str, Any]:
    """The backend, its device and what it may use; `error` says why there is none."""
    try:
        import mlx.core as mx
    except (ImportError, OSError) as error:
        return {"backend": "none", "error": str(error), "device": "", "limit_bytes": None, "mlx": None}
    on_gpu = mx.default_device() == mx.Device(mx.gpu, 0) if mx.device_count(mx.gpu) else False
    info = mx.device_info()
    if not on_gpu:
        backend, limit = "cpu", None
    elif mx.metal.is_available():
        backend, limit = "metal", info.get("max_recommended_working_set_size")
    else:
        backend, limit = "cuda", info.get("total_memory", info.get("memory_size"))
    return {
        "backend": backend,
        "device": str(info.get("device_name", "")),
        "limit_bytes": int(limit) if limit else None,
        "free_bytes": int(info["free_memory"]) if on_gpu and "free_memory" in info else None,
        "mlx": metadata.version("mlx"),
        "error": None,
    }


if __name__ == "__main__":
    json.dump(report(), sys.stdout)
