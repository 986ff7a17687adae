"""A stage as native code sees it: its matrices and norms in one record, and the rooms that a step works in.

Takes matrices that are tiled already. Keeps alive whatever the records point to. Knows nothing of MLX, of
checkpoints or of requests; `recognise` makes a `Decoder` out of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu import attend, attend8, experts
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.attend import BLOCK, ROWS
from exo_cli.engine.cpu.dots import AT_ONCE, TILE
from exo_cli.engine.cpu.layout import Floats, Matrix
from exo_cli.engine.cpu.layout import room as aligned
from exo_cli.engine.cpu.slots import position_bytes
from exo_cli.engine.cpu.turns import Turns
from exo_cli.engine.cpu.waits import LINE

Words = NDArray[np.int64]
MOST_ROWS: Final = 512
"""A longer chunk goes through in parts, so that what a step works in stays small."""


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """A gated MLP."""

    gate_up: Matrix
    """The outputs of both, 16 of each in a tile."""
    down: Matrix

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """A mixture of gated MLPs of one form."""

    router: Matrix
    """In floats; an output an expert."""
    each: Sequence[Gated]
    top: int
    """So many compute a row."""
    shares: bool = False
    """Whether they weigh what they weigh among all experts; else they weigh 1 together."""
    clamped: bool = False
    """Which function gates: `rows.clamped_gate`, else `rows.gate`."""

    @property
    def nbytes(self) -> int:
        return self.router.nbytes + sum(one.nbytes for one in self.each)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One decoder layer: norm, attention, norm, and a gated MLP or a mixture of such."""

    norm_in: Floats
    norm_post: Floats
    qkv: Matrix
    out: Matrix
    mlp: Gated | Experts
    norm_query: Floats | None = None
    norm_key: Floats | None = None
    window: int = 0
    """How many positions a row looks back over, itself included; 0: all."""
    sinks: Floats | None = None
    """A score a head that takes part in the sum alone."""

    @property
    def one(self) -> Gated:
        """The MLP, or the first expert's."""
        return self.mlp if isinstance(self.mlp, Gated) else self.mlp.each[0]

    @property
    def top(self) -> int:
        """How many of them compute a row."""
        return 1 if isinstance(self.mlp, Gated) else self.mlp.top

    @property
    def nbytes(self) -> int:
        norms = [self.norm_in, self.norm_post, self.norm_query, self.norm_key]
        held = sum(each.nbytes for each in norms if each is not None)
        return held + self.qkv.nbytes + self.out.nbytes + self.mlp.nbytes


@dataclass(frozen=True, slots=True)
class Shape:
    """What all layers of a stage have in common."""

    width: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    eps: float
    eps_head: float
    """Of the norms of queries and keys."""
    scale: float

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_width


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A stage: its layers, and at the ends of the chain what comes before and after them."""

    shape: Shape
    layers: Sequence[Layer]
    turns: Turns
    embedding: Matrix | None = None
    head: Matrix | None = None
    norm_final: Floats | None = None
    eps_final: float = 0.0
    kv_bits: Literal[8, 16] = 16
    """Of a number of a key or a value, as slots keep it."""

    @property
    def kv_bytes(self) -> int:
        """A position's keys and values, in all layers."""
        shape = self.shape
        return len(self.layers) * 2 * shape.kv_heads * position_bytes(shape.head_width, self.kv_bits)

    @property
    def nbytes(self) -> int:
        ends = {id(each): each for each in (self.embedding, self.head) if each is not None}
        return sum(layer.nbytes for layer in self.layers) + sum(each.nbytes for each in ends.values())


@dataclass(slots=True)
class Rooms:
    """What a step works in. Grows with the longest context that was seen."""

    shape: Shape
    record: int
    """The longest packed row that is divided among threads."""
    hidden_record: int
    """What goes into `down` for one row, from all experts that compute it."""
    threads: int
    layers: int
    experts: int = 0
    top: int = 0
    """The most that a layer has, and that compute a row."""
    rows: int = 0
    positions: int = 0
    x: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    _kept: list[Any] = field(default_factory=list)
    words: Words = field(default_factory=lambda: np.zeros(t.STEP, np.int64))
    counters: Words = field(init=False)

    def __post_init__(self) -> None:
        lines = t.PHASES * self.layers + MOST_ROWS // t.FEW
        self.counters = aligned(lines * LINE).view(np.int64)
        self.words[t.COUNTERS] = self.counters.ctypes.data

    def fit(self, rows: int, positions: int) -> None:
        """Room for so many rows that look back over so many positions."""
        if rows <= self.rows and positions <= self.positions:
            return
        rows = max(rows, self.rows)
        positions = max(-(-positions // 1024) * 1024, self.positions)
        self.rows, self.positions = rows, positions
        shape = self.shape
        x = aligned(rows * shape.width * 4)
        self.x = x.view(np.float32).reshape(rows, shape.width)
        qkv_stride = 4 * (-(-shape.qkv // 32) * 32)
        qkv = aligned(rows * qkv_stride)
        attended = aligned(rows * shape.heads * shape.head_width * 4)
        packed = aligned(rows * self.record)
        hidden = aligned(rows * self.hidden_record)
        score_stride = 4 * (-(-positions // BLOCK) * BLOCK)
        widest = 4 * max(shape.width, shape.heads * shape.head_width)
        rest = max(widest + t.FEW * self.record, ROWS * score_stride, self._mixture_bytes(rows))
        scratch_bytes = -(-(t.SCRATCH_REST + rest) // 4096) * 4096 + 64
        scratch = aligned(self.threads * scratch_bytes)
        chosen = aligned(rows * self.top * experts.CHOICE)
        items = aligned(rows * self.top * self.record if rows > 1 else 0)
        routed = aligned(4 * self._routed)
        self._kept = [x, qkv, attended, packed, hidden, scratch, chosen, items, routed]
        words = self.words
        words[t.X], words[t.QKV_ROWS], words[t.QKV_STRIDE] = x.ctypes.data, qkv.ctypes.data, qkv_stride
        words[t.ATTENDED], words[t.PACKED], words[t.HIDDEN_ROWS] = (
            each.ctypes.data for each in (attended, packed, hidden)
        )
        words[t.SCRATCH], words[t.SCRATCH_BYTES] = scratch.ctypes.data, scratch_bytes
        words[t.SCORE_STRIDE] = score_stride
        words[t.CHOSEN], words[t.ITEMS], words[t.ROUTED] = (
            each.ctypes.data for each in (chosen, items, routed)
        )

    @property
    def _routed(self) -> int:
        """A row of the router's outputs, and those that fill its last tile."""
        return -(-self.experts // TILE) * TILE

    def _mixture_bytes(self, rows: int) -> int:
        """What a thread needs beside the rooms that all share, where there are experts."""
        if not self.experts:
            return 0
        floats = 4 * (self.shape.width + self._routed)
        one = experts.CHOICE * (self.top + 4) + self.record + floats
        return experts.lists_bytes(self.experts, rows * self.top) + max(one, AT_ONCE * floats)


def rooms(decoder: Decoder, threads: int) -> Rooms:
    layers = decoder.layers
    matrices = [each for layer in layers for each in (layer.qkv, layer.out, layer.one.gate_up)]
    if decoder.head is not None:
        matrices.append(decoder.head)
    mixtures = [layer.mlp for layer in layers if isinstance(layer.mlp, Experts)]
    return Rooms(
        decoder.shape,
        record=max(each.record for each in matrices),
        hidden_record=max(layer.top * layer.one.down.record for layer in layers),
        threads=threads,
        layers=len(layers),
        experts=max((len(each.each) for each in mixtures), default=0),
        top=max((each.top for each in mixtures), default=0),
    )


class Record:
    """The stage's record, and all that it points to."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        shape = decoder.shape
        self._layers = np.zeros((len(decoder.layers), t.LAYER), np.int64)
        self._tables = [
            _layer_words(words, layer) for words, layer in zip(self._layers, decoder.layers, strict=True)
        ]
        eps = [shape.eps, shape.eps_head, shape.eps_head, decoder.eps_final, shape.scale]
        self._floats = np.array(eps, np.float32)
        self.words: Words = np.zeros(t.STAGE, np.int64)
        words = self.words
        words[t.WIDTH], words[t.HEADS], words[t.KV_HEADS] = shape.width, shape.heads, shape.kv_heads
        words[t.HEAD_WIDTH], words[t.HIDDEN] = shape.head_width, shape.hidden
        words[t.TURN_HALF], words[t.TURN_PAIRED] = decoder.turns.half, decoder.turns.paired
        words[t.LAYERS], words[t.LAYER_TABLE] = len(decoder.layers), self._layers.ctypes.data
        attention = attend8.function() if decoder.kv_bits == 8 else attend.function()
        words[t.FLOATS], words[t.ATTEND] = self._floats.ctypes.data, attention.address
        words[t.KV_BITS] = decoder.kv_bits
        if any(self._tables):
            words[t.MIXTURE] = experts.function().address
        if decoder.norm_final is not None:
            words[t.NORM_FINAL] = decoder.norm_final.ctypes.data
        for place, matrix in ((t.EMBEDDING, decoder.embedding), (t.HEAD, decoder.head)):
            if matrix is not None:
                words[place : place + t.MATRIX] = matrix.words()

    @property
    def address(self) -> int:
        return int(self.words.ctypes.data)


def _layer_words(words: Words, layer: Layer) -> list[Words]:
    """Fills a layer's record; gives the tables that it points to."""
    words[t.NORM_IN], words[t.NORM_POST] = layer.norm_in.ctypes.data, layer.norm_post.ctypes.data
    if layer.norm_query is not None:
        words[t.NORM_QUERY] = layer.norm_query.ctypes.data
    words[t.WINDOW] = layer.window
    if layer.sinks is not None:
        words[t.SINKS] = layer.sinks.ctypes.data
    if layer.norm_key is not None:
        words[t.NORM_KEY] = layer.norm_key.ctypes.data
    for place, matrix in (
        (t.QKV, layer.qkv),
        (t.OUT, layer.out),
        (t.GATE_UP, layer.one.gate_up),
        (t.DOWN, layer.one.down),
    ):
        words[place : place + t.MATRIX] = matrix.words()
    mixture = layer.mlp
    if isinstance(mixture, Gated):
        return []
    tables = [
        np.array([matrix.words() for matrix in matrices], np.int64)
        for matrices in ([one.gate_up for one in mixture.each], [one.down for one in mixture.each])
    ]
    words[t.GATE_UPS], words[t.DOWNS] = (table.ctypes.data for table in tables)
    words[t.ROUTER : t.ROUTER + t.MATRIX] = mixture.router.words()
    words[t.EXPERTS], words[t.TOP] = len(mixture.each), mixture.top
    words[t.SHARES] = mixture.shares
    words[t.GATING] = t.CLAMPED if mixture.clamped else t.SILU
    return tables
