"""The chat of `exo run` at a terminal: reads lines, shows answers, keeps going when something fails."""

import contextlib
import signal
from typing import TYPE_CHECKING

from exo_cli.commands.run_answer import Wanted, begin, prompt_of, show
from exo_cli.commands.session import Session
from exo_cli.errors import ExoError

if TYPE_CHECKING:
    from exo_cli.drive.answer import Answer
    from exo_cli.drive.chat import Chat, Command
    from exo_cli.drive.driver import Driver

FIRST, MORE = ">>> ", "... "


async def chat(session: Session, driver: "Driver", wanted: Wanted) -> int:
    """Until Ctrl-D."""
    from exo_cli.drive.chat import Chat, Command, Lines, Say, Unknown, user

    output = session.output
    conversation, lines = Chat(wanted.system), Lines()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing
    # The first answer should not wait for what can be done while the question is typed.
    await driver.chain(1)
    output.hint("/help lists the commands; Ctrl-D leaves")
    more = False
    while True:
        try:
            line = _typed(MORE if more else FIRST)
        except EOFError:
            output.line()
            return 0
        except KeyboardInterrupt:
            output.line()
            if not lines.drop():
                output.hint("Ctrl-D leaves")
            more = False
            continue
        meaning = lines.feed(line)
        more = False
        match meaning:
            case Say(text):
                if text.strip():
                    try:
                        prompt = prompt_of(session, driver, conversation.messages(user(text)), wanted)
                        answer = await begin(driver, prompt, wanted, keep=True)
                        await _shown(session, answer, driver, wanted)
                        conversation.add(text, answer.text)
                    except ExoError as error:
                        output.error(error)
            case Command():
                try:
                    _obey(session, conversation, meaning)
                except ExoError as error:
                    output.error(error)
            case Unknown(word):
                output.note(f"there is no command {word}; /help lists them")
            case _:
                more = True


def _typed(prompt: str) -> str:
    """A line; Ctrl-C means KeyboardInterrupt here, whatever the event loop made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt)
    finally:
        signal.signal(signal.SIGINT, before)


async def _shown(session: Session, answer: "Answer", driver: "Driver", wanted: Wanted) -> None:
    """Show an answer; Ctrl-C stops it and nothing else."""
    import asyncio

    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, answer.stop)
    try:
        await show(session, answer, driver, wanted)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _obey(session: Session, conversation: "Chat", command: "Command") -> None:
    output = session.output
    match command.verb:
        case "help":
            from exo_cli.drive.chat import HELP

            output.line(HELP)
        case "clear":
            conversation.clear()
            output.note("the conversation is forgotten")
        case "system":
            if command.argument:
                conversation.system = command.argument
            output.note(f"system: {conversation.system or '(none)'}")
        case "save":
            _save(session, conversation, command.argument)


def _save(session: Session, conversation: "Chat", name: str) -> None:
    from pathlib import Path

    import msgspec

    from exo_cli import atomic
    from exo_cli.errors import UsageProblem

    if not name:
        raise UsageProblem("/save needs the name of a file", hint="Say /save chat.json")
    path = Path(name).expanduser()
    data = msgspec.json.encode({"messages": conversation.messages()})
    atomic.replace(path, msgspec.json.format(data, indent=2) + b"\n")
    session.output.note(f"saved to {path}")
