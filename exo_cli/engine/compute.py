"""A stage's arithmetic: rows of a step through MLX, each request with caches of its own.

Implements core.Compute. Requests that decode share a forward pass where the family allows it (`rows`)
and go one after the other where it does not; the numbers are the same. Everything is evaluated before
it leaves, on the thread that loaded the model. Knows nothing of streams, epochs or repeats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from exo_cli.engine import caches
from exo_cli.engine.caches import Cost, Held, Prefixes
from exo_cli.engine.core import Open, Token
from exo_cli.engine.rows import together
from exo_cli.engine.sampling import Chosen, choose_each
from exo_cli.engine.scheduler import Row
from exo_cli.engine.slicing import Stage
from exo_cli.engine.tensors import from_wire, to_wire
from exo_cli.errors import BadData
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire.frames import TensorData


@dataclass(slots=True)
class Request(Held):
    """A request's caches, and how its tokens are chosen."""

    sampling: Sampling = field(default_factory=Sampling)


Rows = Sequence[tuple[Request, Row]]


class MlxCompute:
    """Runs a stage."""

    def __init__(
        self,
        stage: Stage,
        each: Sequence[Cost],
        prefixes: Prefixes,
        *,
        shares: bool,
        vocabulary: int | None = None,
        wire: mx.Dtype | None = None,
    ) -> None:
        self.stage = stage
        self._vocabulary = vocabulary
        self._wire = wire
        """How payloads travel; None: as the cut computes them."""
        self.shares = shares
        self._costs = each
        self._prefixes = prefixes

    def set_prefixes(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes

    # -- requests --------------------------------------------------------------------------------

    def size(self, open: Open) -> int:
        self._check_tokens(open.prompt)
        return self.kv_bytes(open.limit)

    def kv_bytes(self, tokens: int) -> int:
        """What a request of so many positions needs."""
        return caches.total(self._costs, tokens)

    def begin(self, open: Open) -> tuple[Request, int]:
        kept = self._prefixes.take(open.prompt)
        if kept is None:
            return Request(self.stage.make_caches(), sampling=open.sampling), 0
        return Request(kept.caches, kept.position, kept.ids, open.sampling), kept.position

    def rewind(self, held: Request, position: int) -> int:
        if not caches.rewind(held, position):
            held.caches, held.position, held.ids = self.stage.make_caches(), 0, []
        return held.position

    def end(self, held: Request, ids: Sequence[int] | None) -> None:
        if ids is not None and held.position:
            kept = Held(held.caches, held.position, held.ids)
            self._prefixes.keep(held.ids, kept, caches.total(self._costs, held.position))

    # -- steps -----------------------------------------------------------------------------------

    def run(self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None) -> TensorData:
        sends = self.stage.sends
        assert sends is not None
        outs = []
        for group, ids, payload in self._groups(rows, tokens, tensor):
            out = self._forward(group, ids, payload)
            assert isinstance(out, tuple)
            outs.append(sends.pack(out).reshape(-1, sends.width))
        whole = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        if self._wire is not None:
            whole = whole.astype(self._wire)
        self._done(rows, tokens, whole)
        if self._wire is not None and self._wire == mx.float16 and not mx.isfinite(whole).all().item():
            raise BadData(
                f"layer {self.stage.last - 1} gives numbers that float16 cannot hold",
                hint="Plan with another dtype between the stages: bfloat16 or float32.",
            )
        return to_wire(whole)

    def run_last(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None, wanted: Sequence[bool]
    ) -> list[Token | None]:
        logits = self.logits(rows, tokens, tensor, wanted)
        asking = [held for (held, _), want in zip(rows, wanted, strict=True) if want]
        chosen = iter(
            choose_each(
                logits,
                [held.sampling for held in asking],
                [held.ids for held in asking],
                [held.position for held in asking],
            )
        )
        return [_token(next(chosen)) if want else None for want in wanted]

    def logits(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None, wanted: Sequence[bool] = ()
    ) -> list[mx.array]:
        """What the head says after each row that wants it; all of them if not told."""
        asked = wanted or [True] * len(rows)
        want = dict(zip((id(held) for held, _ in rows), asked, strict=True))
        out: list[mx.array] = []
        for group, ids, payload in self._groups(rows, tokens, tensor):
            out += self._last(group, ids, payload, want)
        self._done(rows, tokens, *out)
        return out

    def _last(
        self, group: list[Request], ids: mx.array, payload: mx.array | None, want: dict[int, bool]
    ) -> Iterator[mx.array]:
        n = ids.shape[1]
        if n > 1:
            # As mlx-lm does: the prompt's last token goes alone, and the head is not run for the others.
            asked = want[id(group[0])]
            before = n - 1 if asked else n
            self._forward(group, ids[:, :before], None if payload is None else payload[:, :before])
            mx.eval([cache.state for cache in group[0].caches])
            if not asked:
                return
            ids, payload = ids[:, before:], None if payload is None else payload[:, before:]
        out = self._forward(group, ids, payload)
        assert isinstance(out, mx.array)
        for row, held in enumerate(group):
            if want[id(held)]:
                yield out[row, -1]

    def _groups(
        self, rows: Rows, tokens: Sequence[int], tensor: TensorData | None
    ) -> Iterator[tuple[list[Request], mx.array, mx.array | None]]:
        """What goes through the model together: all rows of one token, or one request's chunk."""
        self._check_tokens(tokens)
        given = None if tensor is None else from_wire(tensor)
        receives = self.stage.receives
        if given is not None and receives is not None and given.dtype != (self._wire or receives.dtype):
            raise BadData(f"a tensor of {given.dtype} at a cut that sends {self._wire or receives.dtype}")
        single = all(row.n == 1 for _, row in rows)
        if self.shares and single and len(rows) > 1:
            payload = None if given is None else given[:, None]
            yield [held for held, _ in rows], mx.array(list(tokens))[:, None], payload
            return
        at = 0
        for held, row in rows:
            to = at + row.n
            payload = None if given is None else given[None, at:to]
            yield [held], mx.array([list(tokens[at:to])]), payload
            at = to

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """MLX would read beyond the embedding and say nothing."""
        if self._vocabulary is not None and tokens and max(tokens) >= self._vocabulary:
            raise BadData(f"token {max(tokens)} is not in the model's vocabulary of {self._vocabulary}")

    def _forward(
        self, group: list[Request], ids: mx.array, payload: mx.array | None
    ) -> "tuple[mx.array, ...] | mx.array":
        used = group[0].caches
        if len(group) > 1:
            used = [together([held.caches[place] for held in group]) for place in range(len(used))]
        receives = self.stage.receives
        parts = None if payload is None or receives is None else receives.unpack(payload)
        return self.stage.forward(ids, parts, used)

    def _done(self, rows: Rows, tokens: Sequence[int], *outs: mx.array) -> None:
        """Evaluate what the step made, and note which positions are computed now."""
        mx.eval(list(outs), [cache.state for held, _ in rows for cache in held.caches])
        at = 0
        for held, row in rows:
            held.position = row.position + row.n
            del held.ids[row.position :]
            held.ids += tokens[at : at + row.n]
            at += row.n


def _token(chosen: Chosen) -> Token:
    """Whose it is and where it stands is for the core to say."""
    return Token(0, 0, 0, chosen.id, chosen.logprob, chosen.top)
