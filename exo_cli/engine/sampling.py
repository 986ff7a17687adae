"""The next token out of a row of logits: penalties, filters, chance.

The definitions and their order are mlx-lm's: bias, repetition, presence and frequency penalties on the
logits; then top-p, min-p and top-k on the log-probabilities; temperature last. Chance comes from (seed,
position) alone, so a replay on other machines, or beside other requests, draws the same numbers. Rows
never meet: a row gives the same token alone as in a batch. Knows nothing of requests or of when to stop.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import mlx.core as mx

from exo_cli.schemas.sampling import Sampling

COLDEST: Final = 1e-5
"""Below this temperature the likeliest token is taken: dividing by it would leave the range of float32."""
_WORD: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, the logarithm of its probability after penalties (not a number if the logits were none),
    and the likeliest tokens with theirs, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: mx.array, sampling: Sampling, ids: Sequence[int], *, position: int) -> Chosen:
    """The token at `position` after `ids`, the request's tokens so far, prompt and all."""
    return choose_each([logits], [sampling], [ids], [position])[0]


def choose_each(
    logits: Sequence[mx.array],
    samplings: Sequence[Sampling],
    ids: Sequence[Sequence[int]],
    positions: Sequence[int],
) -> list[Chosen]:
    """The same for several rows, evaluated together."""
    drawn = [
        _draw(row, sampling, seen, position)
        for row, sampling, seen, position in zip(logits, samplings, ids, positions, strict=True)
    ]
    mx.eval(drawn)
    return [_chosen(*each) for each in drawn]


def counter_key(seed: int, position: int) -> mx.array:
    """The random key of one position: two rounds of a 64-bit mixer over both numbers."""
    mixed = _mix((_mix(seed & _WORD) + _GOLDEN * (position + 1)) & _WORD)
    return mx.array([mixed >> 32, mixed & 0xFFFFFFFF], dtype=mx.uint32)


def penalised(logits: mx.array, sampling: Sampling, ids: Sequence[int]) -> mx.array:
    """Logits [vocabulary] after bias and penalties; a window of 0 looks back over everything."""
    size = logits.shape[-1]
    bias = [(token, value) for token, value in sampling.logit_bias if 0 <= token < size]
    if bias:
        logits = logits.at[mx.array([token for token, _ in bias])].add(mx.array([value for _, value in bias]))
    recent = ids[-sampling.penalty_window :] if sampling.penalty_window > 0 else ids
    counts = Counter(token for token in recent if 0 <= token < size) if _penalises(sampling) else {}
    if not counts:
        return logits
    seen = mx.array(list(counts))
    if sampling.repetition_penalty not in (0.0, 1.0):
        some, by = logits[seen], sampling.repetition_penalty
        logits = mx.put_along_axis(logits, seen, mx.where(some < 0, some * by, some / by), axis=-1)
    if sampling.presence_penalty:
        logits = logits.at[seen].subtract(sampling.presence_penalty)
    if sampling.frequency_penalty:
        times = mx.array(list(counts.values()), dtype=mx.float32)
        logits = logits.at[seen].subtract(times * sampling.frequency_penalty)
    return logits


def filtered(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Log-probabilities [vocabulary] with minus infinity for what may not be drawn."""
    if 0 < sampling.top_p < 1:
        logprobs = _top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        least = mx.max(logprobs, axis=-1, keepdims=True) + math.log(min(sampling.min_p, 1.0))
        logprobs = mx.where(logprobs < least, -math.inf, logprobs)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        out = mx.argpartition(-logprobs, kth=sampling.top_k - 1, axis=-1)[sampling.top_k :]
        logprobs = mx.put_along_axis(logprobs, out, mx.array(-math.inf, logprobs.dtype), axis=-1)
    return logprobs


def _draw(
    logits: mx.array, sampling: Sampling, ids: Sequence[int], position: int
) -> tuple[mx.array, mx.array, mx.array | None, mx.array | None]:
    """Lazily: the token, its log-probability, the likeliest tokens and theirs."""
    logits = penalised(logits.astype(mx.float32), sampling, ids)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if sampling.temperature < COLDEST:
        token = mx.argmax(logprobs, axis=-1)
    else:
        scaled = filtered(logprobs, sampling) * (1 / sampling.temperature)
        token = mx.random.categorical(scaled, key=counter_key(sampling.seed, position))
    if sampling.logprobs < 1:
        return token, logprobs[token], None, None
    best = min(sampling.logprobs, logprobs.shape[-1])
    top = mx.argpartition(-logprobs, kth=best - 1, axis=-1)[:best]
    return token, logprobs[token], top, logprobs[top]


def _chosen(token: mx.array, logprob: mx.array, top: mx.array | None, tops: mx.array | None) -> Chosen:
    likeliest: list[tuple[int, float]] = []
    if top is not None and tops is not None:
        likeliest = list(zip(_integers(top), _fractions(tops), strict=True))
        likeliest.sort(key=lambda each: (-each[1], each[0]))
    return Chosen(_integers(token[None])[0], _fractions(logprob[None])[0], tuple(likeliest))


def _integers(array: mx.array) -> list[int]:
    return cast(list[int], array.tolist())


def _fractions(array: mx.array) -> list[float]:
    return cast(list[float], array.tolist())


def is_likeliest(sampling: Sampling) -> bool:
    """Whether it is the likeliest token that is wanted, and no word on others."""
    greedy = sampling.temperature < COLDEST and not sampling.logit_bias
    return greedy and not _penalises(sampling) and sampling.logprobs < 1


def _penalises(sampling: Sampling) -> bool:
    return sampling.repetition_penalty not in (0.0, 1.0) or bool(
        sampling.presence_penalty or sampling.frequency_penalty
    )


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    ordered = mx.sort(logprobs, axis=-1)
    mass = mx.exp(ordered)
    above = mx.cumsum(mass, axis=-1, reverse=True, inclusive=False)
    total = above[:1] + mass[:1]
    dropped = mx.sum(above >= top_p * total, axis=-1, keepdims=True)
    return mx.where(logprobs < mx.take_along_axis(ordered, dropped, axis=-1), -math.inf, logprobs)


def _mix(word: int) -> int:
    """splitmix64's finisher: every bit of the result depends on every bit of `word`."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
