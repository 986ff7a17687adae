"""From tokens to text: the pipeline with a chain that only recites."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from exo_cli.drive.answer import Answer, Piece
from exo_cli.drive.chain import Chain
from exo_cli.drive.requests import Ask, Request, Token
from exo_cli.text.chat import Language

END = 256


class Recital:
    """A chain whose requests get these ids."""

    def __init__(self, ids: Sequence[int], finish: str) -> None:
        self._ids, self._finish = ids, finish
        self.closed = 0

    def generate(self, ask: Ask, *, recover: object = None) -> Any:
        request = Request(ask)
        made = SimpleNamespace(request=request, reason=None, cancel=lambda: None)

        async def tokens() -> AsyncGenerator[Token, None]:
            try:
                for at, id_ in enumerate(self._ids):
                    request.emitted.append(id_)
                    last = at == len(self._ids) - 1
                    yield Token(1, len(ask.prompt) + at, id_, finish=self._finish if last else "")
                made.reason = self._finish or "length"
            finally:
                self.closed += 1

        made.tokens = tokens
        return made


@pytest.fixture
def language(tmp_path: Path) -> Language:
    """One token a byte, so that every text can be said."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["</s>"])
    library.add_tokens(["<think>", "</think>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Language.load(tmp_path)


def recite(
    language: Language, text: str, *, end: bool = True, finish: str = "stop", stops: Sequence[str] = ()
) -> tuple[list[Piece], Answer, Recital]:
    ids = language.tokenizer.encode(text, special=False) + ([END] if end else [])
    chain = Recital(ids, finish)
    prompt = language.plain("x")
    ask = Ask(prompt.ids, 1000, stop_ids=language.tokenizer.stop_ids)
    answer = Answer(cast(Chain, chain), language, prompt, ask, stops)

    async def main() -> list[Piece]:
        return [piece async for piece in answer.pieces()]

    return asyncio.run(main()), answer, chain


def test_a_piece_for_each_token_and_together_they_are_the_text(language: Language) -> None:
    pieces, answer, _ = recite(language, "Grüße, 東京 😀")
    assert "".join(piece.text for piece in pieces) == answer.text == "Grüße, 東京 😀"
    assert len(pieces) == len("Grüße, 東京 😀".encode()) + 1
    assert pieces[-1].text == ""
    assert answer.reason == "stop"


def test_what_was_held_back_comes_with_the_last_token(language: Language) -> None:
    pieces, answer, _ = recite(language, "one two ST", end=False, finish="length", stops=["STOP"])
    assert answer.text == "one two ST"
    assert pieces[-1].text == "ST"
    pieces, answer, _ = recite(language, "one two ST", stops=["STOP"])
    assert answer.text == "one two ST"
    assert pieces[-1].text == "ST"


def test_a_stop_string_ends_it_and_the_chain_is_let_go(language: Language) -> None:
    pieces, answer, chain = recite(language, "one STOP two", stops=["STOP"])
    assert answer.text == "one "
    assert answer.reason == "stop"
    assert len(pieces) == len("one STOP")
    assert chain.closed == 1


def test_thinking_is_kept_apart(language: Language) -> None:
    pieces, answer, _ = recite(language, "<think>hmm STOP</think>\n\nyes", stops=["STOP"])
    assert answer.text == "yes"
    assert "".join(piece.thinking for piece in pieces) == "hmm STOP"


def test_an_answer_that_is_cut_in_a_character(language: Language) -> None:
    ids = language.tokenizer.encode("é", special=False)[:1]
    chain = Recital(ids, "length")
    prompt = language.plain("x")
    answer = Answer(cast(Chain, chain), language, prompt, Ask(prompt.ids, 1))
    asyncio.run(_drain(answer))
    assert answer.text == "\ufffd"


async def _drain(answer: Answer) -> None:
    async for _ in answer.pieces():
        pass
