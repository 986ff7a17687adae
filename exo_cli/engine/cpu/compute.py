"""The engine's arithmetic by our own kernels: implements core.Compute for stages that `recognise` knows.

Requests that decode go through together, a chunk in parts of at most MOST_ROWS rows; both give each row the
numbers that it would have alone. Caches are slots of ours; logits go to the same sampling as ever. Knows
nothing of streams, epochs or repeats.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import mlx.core as mx
import numpy as np

from exo_cli.engine.caches import Cost, Prefixes
from exo_cli.engine.compute import MlxCompute, Request, Rows
from exo_cli.engine.core import Open, Token
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.layout import Floats
from exo_cli.engine.cpu.likeliest import likeliest
from exo_cli.engine.cpu.plan import MOST_ROWS, Decoder, Record, rooms
from exo_cli.engine.cpu.pool import Pool, default_threads
from exo_cli.engine.cpu.slots import Slot
from exo_cli.engine.sampling import choose, is_likeliest
from exo_cli.engine.slicing import Stage
from exo_cli.engine.tensors import from_wire, to_wire
from exo_cli.errors import BadData
from exo_cli.wire.frames import DType, TensorData

_NAMES: Final[dict[mx.Dtype | None, DType]] = {mx.float16: "float16", mx.bfloat16: "bfloat16"}


class NativeCompute(MlxCompute):
    """Runs a stage without MLX."""

    def __init__(
        self,
        stage: Stage,
        decoder: Decoder,
        prefixes: Prefixes,
        *,
        vocabulary: int | None = None,
        wire: mx.Dtype | None = None,
        threads: int | None = None,
    ) -> None:
        if decoder.embedding is not None:
            # A token beyond it would be read from somewhere else.
            vocabulary = min(vocabulary or decoder.embedding.outputs, decoder.embedding.outputs)
        each = (Cost(decoder.kv_bytes, None, 0),)
        super().__init__(stage, each, prefixes, shares=True, vocabulary=vocabulary, wire=wire)
        self.decoder = decoder
        self.pool = Pool(threads or default_threads())
        self._record = Record(decoder)
        self._rooms = rooms(decoder, self.pool.threads)
        self._rooms.words[t.BARRIER] = self.pool.barrier

    @property
    def wire_name(self) -> DType:
        """How payloads travel; without a word about it they are float32, as they are computed."""
        return _NAMES.get(self._wire, "float32")

    # -- requests --------------------------------------------------------------------------------

    def _slot(self, positions: int) -> Slot:
        decoder, shape = self.decoder, self.decoder.shape
        return Slot(len(decoder.layers), shape.kv_heads, shape.head_width, positions, decoder.kv_bits)

    def begin(self, open: Open) -> tuple[Request, int]:
        kept = self._prefixes.take(open.prompt)
        if kept is None:
            return Request([self._slot(open.limit)], sampling=open.sampling), 0
        kept.caches[0].reserve(open.limit)
        return Request(kept.caches, kept.position, kept.ids, open.sampling), kept.position

    def request(self, positions: int) -> Request:
        """A request with room for so many positions, for trials."""
        return Request([self._slot(positions)])

    # -- steps -----------------------------------------------------------------------------------

    def run(self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None) -> TensorData:
        out = np.empty((len(tokens), self.decoder.shape.width), np.float32)
        self._through(rows, tokens, tensor, out, None)
        if self.wire_name == "float32":
            return TensorData("float32", out.shape, out.tobytes())
        assert self._wire is not None
        whole = mx.array(out).astype(self._wire)
        if self._wire == mx.float16 and not mx.isfinite(whole).all().item():
            raise BadData(
                f"layer {self.stage.last - 1} gives numbers that float16 cannot hold",
                hint="Plan with another dtype between the stages: bfloat16 or float32.",
            )
        return to_wire(whole)

    def run_last(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None, wanted: Sequence[bool]
    ) -> list[Token | None]:
        answers = iter(self._logits(rows, tokens, tensor, wanted))
        return [
            _token(next(answers), held) if want else None
            for (held, _), want in zip(rows, wanted, strict=True)
        ]

    def logits(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None, wanted: Sequence[bool] = ()
    ) -> list[mx.array]:
        return [mx.array(row) for row in self._logits(rows, tokens, tensor, wanted)]

    def _logits(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None, wanted: Sequence[bool]
    ) -> Floats:
        """What the head says after each row that wants it; all of them if not told."""
        ends = accumulate(row.n for _, row in rows)
        asked = [end - 1 for end, want in zip(ends, wanted or [True] * len(rows), strict=True) if want]
        return self._through(rows, tokens, tensor, None, asked)

    def _through(
        self,
        rows: Rows,
        tokens: Sequence[int],
        tensor: TensorData | None,
        out: Floats | None,
        asked: list[int] | None,
    ) -> Floats:
        """All rows through the layers, in parts; what comes out goes to `out`, or logits come back."""
        given = self._given(tokens, tensor)
        for held, row in rows:
            held.caches[0].reserve(row.position + row.n)
        self._rooms.fit(min(len(tokens), MOST_ROWS), max(row.position + row.n for _, row in rows))
        head = self.decoder.head
        answers = np.empty((len(asked or ()), head.room if head is not None else 0), np.float32)
        done = 0
        for part in _parts(rows):
            count = sum(n for _, _, n in part)
            mine = [number for number, row in enumerate(asked or ()) if done <= row < done + count]
            if given is None:
                ids = np.array(tokens[done : done + count], np.int64)
            else:
                ids = np.zeros(0, np.int64)
                self._rooms.x[:count] = given[done : done + count]
            self._step(
                part,
                ids,
                [(asked or ())[number] - done for number in mine],
                answers[mine[0] :] if mine else None,
            )
            if out is not None:
                out[done : done + count] = self._rooms.x[:count]
            done += count
        at = 0
        for held, row in rows:
            held.position = held.caches[0].offset = row.position + row.n
            del held.ids[row.position :]
            held.ids += tokens[at : at + row.n]
            at += row.n
        return answers[:, : head.outputs] if head is not None else answers

    def _given(self, tokens: Sequence[int], tensor: TensorData | None) -> Floats | None:
        """What an earlier stage sent, as float32."""
        self._check_tokens(tokens)
        receives = self.stage.receives
        if (tensor is None) != (receives is None):
            raise BadData("a payload came to the first stage" if tensor else "a step came without a payload")
        if tensor is None or receives is None:
            return None
        width = self.decoder.shape.width
        if tuple(tensor.shape) != (len(tokens), width):
            raise BadData(f"a tensor of shape {tensor.shape} at a cut that is {width} wide")
        if tensor.dtype != self.wire_name:
            raise BadData(f"a tensor of {tensor.dtype} at a cut that sends {self.wire_name}")
        if tensor.dtype == "float32":
            return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        return np.array(from_wire(tensor).astype(mx.float32))

    def _step(
        self,
        part: "list[tuple[Request, int, int]]",
        ids: "np.ndarray",
        wanted: list[int],
        logits: Floats | None,
    ) -> None:
        words = self._rooms.words
        table = np.zeros((len(part), t.PART), np.int64)
        start = most = 0
        for line, (held, position, n) in zip(table, part, strict=True):
            slot = held.caches[0]
            where = slot.address, slot.layer_bytes, slot.head_bytes
            line[: t.PART_HEAD_BYTES + 1] = (start, n, position, *where)
            start += n
            most = max(most, position + n)
        turns = self.decoder.turns.up_to(most)
        chosen = np.array(wanted, np.int64)
        words[t.ROWS], words[t.PARTS], words[t.PART_TABLE] = start, len(part), table.ctypes.data
        words[t.MANY] = int(any(n > 1 for _, _, n in part))
        words[t.TURNS] = turns.ctypes.data
        words[t.TOKENS] = ids.ctypes.data if len(ids) else 0
        words[t.WANTED], words[t.WANTED_TABLE] = len(wanted), chosen.ctypes.data
        if logits is not None:
            words[t.LOGITS], words[t.LOGITS_STRIDE] = logits.ctypes.data, logits.strides[0]
        self._rooms.counters[:] = 0
        self.pool.run(self._record.address, int(words.ctypes.data))


def _token(logits: Floats, held: Request) -> Token:
    """Greedy choices are made here; all others where every engine makes them."""
    sampling = held.sampling
    if is_likeliest(sampling):
        token, logprob = likeliest(logits)
        return Token(0, 0, 0, token, logprob)
    chosen = choose(mx.array(logits), sampling, held.ids, position=held.position)
    return Token(0, 0, 0, chosen.id, chosen.logprob, chosen.top)


def _parts(rows: Rows) -> "list[list[tuple[Request, int, int]]]":
    """(request, position, tokens) by native step: all rows that fit together, long chunks in pieces."""
    parts: list[list[tuple[Request, int, int]]] = []
    room = 0
    for held, row in rows:
        done = 0
        while done < row.n:
            if room == 0:
                parts.append([])
                room = MOST_ROWS
            n = min(room, row.n - done)
            parts[-1].append((held, row.position + done, n))
            done += n
            room -= n
    return parts
