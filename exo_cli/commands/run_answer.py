"""One answer of `exo run`, from what was asked to what is shown; the chat uses it as well."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exo_cli.commands.session import Session
from exo_cli.errors import BadData, ExoError, hinting

if TYPE_CHECKING:
    from exo_cli.drive.answer import Answer
    from exo_cli.drive.driver import Driver
    from exo_cli.text.chat import Prompt

DEFAULT_MAX_TOKENS = 4096
ENOUGH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked of each answer."""

    system: str | None
    raw: bool
    think: bool | None
    max_tokens: int | None
    stops: tuple[str, ...]
    stats: bool
    sampling: dict[str, Any]


def prompt_of(session: Session, driver: "Driver", messages: Any, wanted: Wanted) -> "Prompt":
    """The messages as the model's template puts them."""
    language = driver.language
    with hinting("With --raw the text goes to the model as it stands, without its chat template."):
        if wanted.think is not None and language.think_option(language.template()) is None:
            session.output.warning(f"{driver.name} has no switch for thinking")
        return language.chat(messages, think=wanted.think)


async def begin(driver: "Driver", prompt: "Prompt", wanted: Wanted, *, keep: bool = False) -> "Answer":
    """An answer that only waits to be read; the chain is there."""
    from exo_cli.drive.answer import Answer
    from exo_cli.drive.requests import Ask
    from exo_cli.drive.sampling import sampling

    tokens = wanted.max_tokens or _as_many_as_fit(driver, len(prompt.ids))
    chain = await driver.chain(len(prompt.ids) + tokens)
    ask = Ask(
        prompt=prompt.ids,
        max_tokens=tokens,
        sampling=sampling(wanted.sampling, driver.directory.path),
        stop_ids=driver.language.tokenizer.stop_ids,
        keep_prefix=keep,
    )
    recover = driver.recovery(chain, len(prompt.ids) + tokens)
    return Answer(chain, driver.language, prompt, ask, wanted.stops, recover=recover)


def _as_many_as_fit(driver: "Driver", prompt: int) -> int:
    """In what is loaded, as long as that is enough for an answer; else in what the model knows."""
    if prompt >= driver.size.context:
        raise BadData(
            f"the prompt has {prompt} tokens; {driver.name} knows {driver.size.context}",
            hint="Give a shorter prompt, or take a model with a longer context.",
        )
    left = driver.context - prompt
    if left < ENOUGH_TOKENS:
        left = driver.size.context - prompt
    return max(1, min(DEFAULT_MAX_TOKENS, left))


async def show(session: Session, answer: "Answer", driver: "Driver", wanted: Wanted) -> None:
    """Print an answer as it comes; what ends it too early is raised after what came."""
    import asyncio
    from contextlib import aclosing

    from exo_cli.commands.run_view import Show

    view = Show(session.output)
    try:
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                view.piece(piece)
    except (ExoError, asyncio.CancelledError) as error:
        view.end_line()
        view.summary(answer, "error" if isinstance(error, ExoError) else "cancelled", driver.stages)
        raise
    view.end_line()
    view.summary(answer, answer.reason or "stop", driver.stages)
    if wanted.stats:
        session.output.note(view.stats(answer, driver.stages))
