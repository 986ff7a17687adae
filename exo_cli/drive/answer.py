"""Tokens to the text that is shown: detokenized, without thinking, cut at a stop string.

One piece for each token, so that the joined texts of all pieces are the answer. Knows nothing of
chains and terminals.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from exo_cli.drive.chain import Chain, Recover
from exo_cli.drive.requests import Ask, Reason, Token
from exo_cli.text.chat import Language, Prompt
from exo_cli.text.stops import StopStrings
from exo_cli.text.thinking import Part


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added."""

    token: Token
    text: str
    thinking: str


class Answer:
    """One answer; iterate over `pieces`, then read how it went."""

    def __init__(
        self,
        chain: Chain,
        language: Language,
        prompt: Prompt,
        ask: Ask,
        stops: Sequence[str] = (),
        *,
        recover: Recover | None = None,
    ) -> None:
        self.generation = chain.generate(ask, recover=recover)
        self.reason: Reason | None = None
        self.text = ""
        self._ask = ask
        self._detokenizer = language.detokenizer()
        self._splitter = language.splitter(prompt)
        self._stops = StopStrings(stops)

    @property
    def prompt_tokens(self) -> int:
        return len(self._ask.prompt)

    @property
    def cached_tokens(self) -> int:
        return self.generation.request.prefix

    @property
    def generated_tokens(self) -> int:
        return len(self.generation.request.emitted)

    def stop(self) -> None:
        """Nobody wants the rest."""
        self.generation.cancel()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """A piece for each token; raises what ended the answer before its time."""
        tokens = self.generation.tokens()
        try:
            async for token in tokens:
                piece = self._piece(token)
                self.text += piece.text
                yield piece
                if self._stops.hit is not None:
                    # The chain cannot know: what it computes beyond is thrown away.
                    self.reason = "stop"
                    return
            self.reason = self.generation.reason
        finally:
            await tokens.aclose()

    def _piece(self, token: Token) -> Piece:
        ends = token.id in self._ask.stop_ids
        parts = self._splitter.feed("" if ends else self._detokenizer.feed(token.id))
        if ends or token.finish or self.generated_tokens >= self._ask.max_tokens:
            # Nothing follows that could change what was held back.
            parts += [*self._splitter.feed(self._detokenizer.flush()), *self._splitter.flush()]
            text = self._answer(parts) + self._stops.flush()
        else:
            text = self._answer(parts)
        return Piece(token, text, "".join(text for part, text in parts if part is Part.THINKING))

    def _answer(self, parts: Sequence[tuple[Part, str]]) -> str:
        return "".join(self._stops.feed(text) for part, text in parts if part is Part.ANSWER)
