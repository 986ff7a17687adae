"""MLX arrays as a frame's bytes and back. Knows nothing of what they mean."""

from typing import Any, Final

import mlx.core as mx
import numpy as np

from exo_cli.errors import BadData
from exo_cli.wire.frames import DType, TensorData

WIRE_DTYPES: Final[dict[str, mx.Dtype]] = {
    "float32": mx.float32,
    "bfloat16": mx.bfloat16,
    "float16": mx.float16,
}
_NAMES: Final[dict[mx.Dtype, DType]] = {
    mx.float32: "float32",
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
}


def to_wire(array: mx.array) -> TensorData:
    """The evaluated array's bytes, [rows, width]."""
    name = _NAMES.get(array.dtype)
    if name is None:
        raise BadData(f"{array.dtype} does not travel between stages")
    # numpy has no bfloat16: its bits travel as they are.
    plain: Any = np.array(array if name == "float32" else array.view(mx.uint16), copy=False)
    return TensorData(name, tuple(array.shape), plain.tobytes())


def from_wire(tensor: TensorData) -> mx.array:
    """An array of its own: the message's bytes are not kept."""
    kind = np.float32 if tensor.dtype == "float32" else np.uint16
    array = mx.array(np.frombuffer(tensor.data, kind).reshape(tensor.shape))
    return array if tensor.dtype == "float32" else array.view(WIRE_DTYPES[tensor.dtype])
