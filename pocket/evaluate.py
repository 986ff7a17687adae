"""Asks the model the questions of a file and counts: right verb named, verbs or options invented.

`python -m pocket.evaluate [FILE]`, in exo's own environment. A question counts as right when its
answer names one of its verbs; with no verbs expected, when it invents nothing. Knows nothing of
training.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pocket import check

DEV: Final = Path(__file__).parent / "dev_questions.jsonl"
MODEL: Final = Path(__file__).parents[1] / "exo_cli" / "models" / "pocket"
MAX_TOKENS: Final = 160


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a file."""

    question: str
    verbs: tuple[str, ...]
    """Any of them is right."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was answered."""

    question: Question
    answer: str

    @property
    def right(self) -> bool:
        return right(self.question, self.answer)

    @property
    def invented(self) -> list[str]:
        return check.invented(self.answer)


def read(path: Path) -> list[Question]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Question(line["question"], tuple(line["verbs"])) for line in lines]


def right(question: Question, answer: str) -> bool:
    if not question.verbs:
        return not check.invented(answer)
    wanted = {verb.removeprefix("exo ").split()[0] for verb in question.verbs}
    return not wanted.isdisjoint(check.verbs(answer))


def loaded(model: Path) -> tuple[Any, Any]:
    """The network in float32, as exo computes on CPUs (in half precision MLX is ten times slower there)."""
    import mlx.core as mx
    import mlx_lm

    network: Any
    network, tokenizer, *_ = mlx_lm.load(str(model))
    network.set_dtype(mx.float32)
    return network, tokenizer


def answer(network: Any, tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """What the model says next, greedily, through mlx-lm."""
    import mlx_lm

    prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    return str(mlx_lm.generate(network, tokenizer, prompt, max_tokens=MAX_TOKENS))


def ask(model: Path, questions: Sequence[str]) -> list[str]:
    """The answers to questions that have nothing to do with one another."""
    network, tokenizer = loaded(model)
    return [answer(network, tokenizer, [{"role": "user", "content": question}]) for question in questions]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pocket with a file of questions.")
    parser.add_argument("file", type=Path, nargs="?", default=DEV)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--all", action="store_true", help="print every answer, not only failures")
    given = parser.parse_args()
    questions = read(given.file)
    answers = ask(given.model, [question.question for question in questions])
    results = [Result(question, answer) for question, answer in zip(questions, answers, strict=True)]
    for result in results:
        if given.all or not result.right or result.invented:
            mark = "ok  " if result.right else "MISS"
            print(f"{mark} {result.question.question}  {list(result.question.verbs)}")
            print(f"     {result.answer}")
            if result.invented:
                print(f"     INVENTED {result.invented}")
    n = len(results)
    print(f"{n} questions: {sum(r.right for r in results) / n:.1%} right verb, ", end="")
    print(f"{sum(bool(r.invented) for r in results) / n:.1%} name something that does not exist")


if __name__ == "__main__":
    main()
