"""Trains pocket: `python -m pocket.train --out FOLDER`, in an environment with pocket/requirements.txt.

The last part of the steps computes with weights rounded to 4 bits, so that rounding them afterwards
changes nothing. Knows nothing of the model directory; `pocket.export` writes that.
"""

import argparse
import json
import time
from dataclasses import asdict, astuple
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from pocket import evaluate, vocabulary
from pocket.corpus import Corpus, Turn
from pocket.examples import COLUMNS, NOTHING, ROWS, Batch, Examples
from pocket.network import Network, Shape, rounded
from pocket.rounding import quantized, restored
from pocket.topics import load

STEPS: Final = 3500
SEED: Final = 3
PEAK_RATE: Final = 2e-3
DECAY: Final = 0.05
WARM_UP: Final = 100
ROUNDED: Final = 0.25
"""The last share of the steps that computes in 4 bits."""
COOL_DOWN: Final = 0.45
"""The last share of the steps in which the rate falls to nothing."""
INTENT_WEIGHT: Final = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description="Train pocket.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the tokenizer")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hold-out", action="store_true", help="keep phrasings back and measure with them")
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    parser.add_argument("--dropout", type=float, default=0.1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    corpus = Corpus(load(), hold_out=given.hold_out)
    tokenizer = vocabulary.train(corpus, given.seed)
    tokenizer.save(str(given.out / "tokenizer.json"))
    examples = Examples(corpus, tokenizer)
    network = Network(Shape(vocabulary=tokenizer.get_vocab_size()), len(examples.numbers))
    count = sum(weight.size for weight in network.named_for_mlx().values())
    print(f"{count:,} parameters, {len(corpus.known.intents)} intents, {time.monotonic() - started:.0f} s")
    _train(network, examples, tokenizer, given, started)
    weights = network.named_for_mlx()
    _check_rounding(weights)
    save_file(weights, given.out / "weights.safetensors")
    (given.out / "shape.json").write_text(json.dumps(asdict(network.shape)))
    print(f"written to {given.out} after {(time.monotonic() - started) / 60:.1f} minutes")


def _train(
    network: Network, examples: Examples, tokenizer: Tokenizer, given: argparse.Namespace, started: float
) -> None:
    matrices = [weight for weight in network.parameters() if weight.ndim == 2]
    others = [weight for weight in network.parameters() if weight.ndim != 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.rate, betas=(0.9, 0.98), fused=True)
    compiled = torch.compile(_loss)
    watch = _Watch(examples, tokenizer, given.seed)
    batches = examples.batches(Random(given.seed + 1))
    drops = _Dropout(network.shape, given.dropout, given.seed)
    begun, tokens = time.monotonic(), 0
    for step in range(given.steps):
        if step == int(given.steps * (1 - ROUNDED)):
            network.round_weights()
        for group in optimizer.param_groups:
            group["lr"] = given.rate * _rate(step, given.steps)
        batch = next(batches)
        loss, said, guessed = compiled(network, *_tensors(batch), *drops.draw())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch.tokens
        if step == 20:
            begun, tokens = time.monotonic(), 0
        if step % 50 == 0 or step == given.steps - 1:
            seconds = time.monotonic() - begun
            left = seconds / max(1, step - 20) * (given.steps - step) / 60 if step > 20 else float("nan")
            print(
                f"step {step:5d}  answers {said.item():.3f}  intents {guessed.item():.3f}  "
                f"{tokens / max(seconds, 1e-3):,.0f} tokens/s  {(time.monotonic() - started) / 60:.1f} min, "
                f"{left:.1f} left",
                flush=True,
            )
        if (step % 500 == 0 and step) or step == given.steps - 1:
            print(watch.report(network), flush=True)


def _loss(
    network: Network,
    ids: torch.Tensor,
    position: torch.Tensor,
    document: torch.Tensor,
    said_at: torch.Tensor,
    said: torch.Tensor,
    said_weight: torch.Tensor,
    asked_at: torch.Tensor,
    asked: torch.Tensor,
    *keep: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        logits, intents = network(ids, position, document, said_at, asked_at, keep)
    each = F.cross_entropy(logits.float(), said, reduction="none")
    answers = (each * said_weight).sum() / said_weight.sum()
    guesses = F.cross_entropy(intents.float(), asked, ignore_index=NOTHING)
    return answers + INTENT_WEIGHT * guesses, answers.detach(), guesses.detach()


def _rate(step: int, steps: int) -> float:
    falling = (steps - step) / max(1, int(steps * COOL_DOWN))
    return min(1.0, (step + 1) / WARM_UP, falling)


class _Dropout:
    """Factors for values between layers, cut from one long drawing: to draw anew takes a third of a step."""

    _LENGTH: Final = 2**24

    def __init__(self, shape: Shape, share: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(self._LENGTH, generator=generator) >= share
        self._bank = (kept / (1 - share)).bfloat16()
        self._size, self._count = (ROWS, COLUMNS, shape.hidden), 2 * shape.layers + 1
        self._rng = Random(seed)

    def draw(self) -> list[torch.Tensor]:
        n = int(np.prod(self._size))
        starts = (self._rng.randrange(self._LENGTH - n) for _ in range(self._count))
        return [self._bank[at : at + n].view(self._size) for at in starts]


def _tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(part) for part in astuple(batch) if isinstance(part, np.ndarray))


class _Watch:
    """How well questions that were never trained on are told apart, by the guess of the intent alone."""

    def __init__(self, examples: Examples, tokenizer: Tokenizer, seed: int) -> None:
        corpus = examples.corpus
        self._names = [intent.name for intent in corpus.known.intents]
        self._intents = {intent.name: intent for intent in corpus.known.intents}
        self._examples = examples
        self._held = list(corpus.held_out(Random(seed)))
        self._dev = evaluate.read(evaluate.DEV) if evaluate.DEV.exists() else []

    def report(self, network: Network) -> str:
        network.eval()
        parts = []
        if self._held:
            right = [self._guess(network, t.question) == t.intent.name for t in self._held]
            parts.append(f"held out {np.mean(right):.1%} of {len(right)}")
        if self._dev:
            guesses = [self._guess(network, q.question.lower()) for q in self._dev]
            answers = [self._intents[name].answers[0] for name in guesses]
            right = [evaluate.right(q, a) for q, a in zip(self._dev, answers, strict=True)]
            parts.append(f"development questions {np.mean(right):.1%} of {len(right)}")
        network.train()
        return "    " + ", ".join(parts)

    def _guess(self, network: Network, question: str) -> str:
        anybody = next(iter(self._intents.values()))
        ids = self._examples.encode(vocabulary.prompt([Turn(question, anybody, "")]))
        row = torch.tensor([ids])
        with torch.no_grad():
            last = torch.tensor([len(ids) - 1])
            _, intents = network(row, torch.arange(len(ids))[None], torch.zeros_like(row), last, last)
        return self._names[int(intents[0].argmax())]


def _check_rounding(weights: dict[str, Any]) -> None:
    """What the network computed with is what the exporter will write."""
    for name, weight in weights.items():
        if weight.ndim == 2:
            trained = rounded(torch.from_numpy(weight)).numpy()
            if not np.array_equal(trained, restored(*quantized(weight))):
                worst = np.abs(trained - restored(*quantized(weight))).max()
                if worst > 1e-6:
                    raise SystemExit(f"{name}: rounding in training and export differ by {worst}")


if __name__ == "__main__":
    main()
