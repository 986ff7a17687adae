"""The gate: greedy tokens do not depend on how many requests run, nor on how the model is split. Pure.

Figures of a chain that computes something else are marked invalid. Every answer that was timed is
compared, and so are the warm-ups'. On CPUs `exact` promises every token; on accelerators the order of
sums depends on the batch, so answers may part where two tokens are as likely, if somebody looked (`ties`).
Knows nothing of figures, nor of how answers were made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from exo_cli.bench.load import Key, Round, Spot
from exo_cli.schemas.bench import Gate, GateCheck

Answer = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two answers to one prompt that should be one."""

    key: Key
    spot: Spot
    """Where `answer` was given."""
    expected: Answer
    answer: Answer

    @property
    def at(self) -> int | None:
        """The first token that differs; None where one answer only ends earlier."""
        pairs = enumerate(zip(self.expected, self.answer, strict=False))
        return next((at for at, (one, other) in pairs if one != other), None)


Ties = frozenset[tuple[Key, int | None]]
"""Prompts and positions where two tokens are so close that rounding decides between them."""


def by_levels(rounds: Sequence[Round], ties: Ties = frozenset()) -> GateCheck:
    """The same prompts at different levels."""
    pairs, spots = _between_levels(rounds)
    check = _judged("levels", pairs, ties, "it gives {} than with {}", spots)
    return check if check.compared else skipped("levels", "no prompt ran at two levels")


def with_unsplit(
    rounds: Sequence[Round], unsplit: Mapping[Key, Answer], ties: Ties = frozenset()
) -> GateCheck:
    """The same prompts by the whole model on one node."""
    pairs = _with_whole(rounds, unsplit)
    check = _judged("unsplit", pairs, ties, "the chain gives {} than the whole model")
    return check if check.compared else skipped("unsplit", "no answer of both is there")


def differences(rounds: Sequence[Round], unsplit: Mapping[Key, Answer]) -> list[Difference]:
    """Everything that differs, each pair of a prompt and a position once."""
    pairs = [*_between_levels(rounds)[0], *_with_whole(rounds, unsplit)]
    return list({(each.key, each.at): each for each in pairs if _said(each) is not None}.values())


def skipped(name: Literal["levels", "unsplit"], why: str) -> GateCheck:
    return GateCheck(name=name, state="skipped", compared=0, said=why)


def gate(*checks: GateCheck) -> Gate:
    """Valid unless something differs: what could not be compared is said, not held against it."""
    return Gate(valid=all(check.state != "differ" for check in checks), checks=checks)


def _between_levels(rounds: Sequence[Round]) -> tuple[list[Difference], dict[Key, Spot]]:
    """Answers beside that of the level which gave its own first, and which one that was."""
    seen: dict[Key, tuple[Spot, Answer]] = {}
    pairs = []
    for key, spot, answer in _answers(rounds):
        first, expected = seen.setdefault(key, (spot, answer))
        if first != spot:
            pairs.append(Difference(key, spot, expected, answer))
    return pairs, {key: spot for key, (spot, _) in seen.items()}


def _with_whole(rounds: Sequence[Round], unsplit: Mapping[Key, Answer]) -> list[Difference]:
    found = _answers(rounds)
    return [Difference(key, spot, unsplit[key], answer) for key, spot, answer in found if key in unsplit]


def _answers(rounds: Sequence[Round]) -> Iterator[tuple[Key, Spot, Answer]]:
    for each in rounds:
        for key, sample in zip(each.keys, each.samples, strict=True):
            if sample.completed:
                yield key, each.spot, sample.answer


def _judged(
    name: Literal["levels", "unsplit"],
    pairs: Sequence[Difference],
    ties: Ties,
    sentence: str,
    firsts: Mapping[Key, Spot] | None = None,
) -> GateCheck:
    tied = 0
    for compared, pair in enumerate(pairs, 1):
        said = _said(pair)
        if said is None:
            continue
        if (pair.key, pair.at) in ties:
            tied += 1
            continue
        beside = () if firsts is None else (firsts[pair.key].concurrency,)
        said = f"{_many(pair.spot)} {sentence.format(said, *beside)}"
        return GateCheck(name=name, state="differ", compared=compared, said=said)
    said = f"{tied} of them part where two tokens are as likely" if tied else ""
    return GateCheck(name=name, state="agree", compared=len(pairs), said=said)


def _many(spot: Spot) -> str:
    return f"with {spot.concurrency} request{'' if spot.concurrency == 1 else 's'} at a time"


def _said(pair: Difference) -> str | None:
    """Where they part, as the middle of a sentence. Texts are compared whole: servers cut them anyhow."""
    expected, answer = pair.expected, pair.answer
    if any(isinstance(each, str) for each in (*expected, *answer)):
        one, other = "".join(map(str, expected)), "".join(map(str, answer))
        if one == other:
            return None
        at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        return f"another text from character {at + 1} on"
    if expected == answer:
        return None
    if pair.at is None:
        return f"an answer of another length ({len(answer)} instead of {len(expected)} tokens)"
    return f"another token at position {pair.at + 1} ({answer[pair.at]} instead of {expected[pair.at]})"
