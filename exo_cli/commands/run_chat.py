"""The chat of `exo run` at a terminal: reads lines, shows answers, keeps going when something fails."""

import contextlib
from typing import TYPE_CHECKING

from exo_cli.commands.run_answer import Wanted, begin, prompt_of, show
from exo_cli.commands.session import Session
from exo_cli.errors import ExoError

if TYPE_CHECKING:
    from exo_cli.commands.interrupts import Interrupts
    from exo_cli.drive.chat import Chat, Command
    from exo_cli.drive.driver import Driver

FIRST, MORE = ">>> ", "... "


async def chat(session: Session, driver: "Driver", wanted: Wanted) -> int:
    """Until Ctrl-D."""
    from exo_cli.commands.interrupts import Interrupts
    from exo_cli.drive.chat import Chat, Command, Lines, Say, Unknown

    output = session.output
    conversation, lines = Chat(wanted.system), Lines()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing
    # The first answer should not wait for what can be done while the question is typed.
    await driver.chain(1)
    output.hint("/help lists the commands; Ctrl-D leaves")
    more = False
    with Interrupts() as interrupts:
        while True:
            try:
                line = interrupts.typed(MORE if more else FIRST)
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
            try:
                match meaning:
                    case Say(text):
                        if text.strip():
                            answered = _answered(session, driver, wanted, conversation, text, interrupts)
                            await interrupts.turn(answered)
                    case Command():
                        _obey(session, conversation, meaning)
                    case Unknown(word):
                        output.note(f"there is no command {word}; /help lists them")
                    case _:
                        more = True
            except ExoError as error:
                output.error(error)


async def _answered(
    session: Session,
    driver: "Driver",
    wanted: Wanted,
    conversation: "Chat",
    text: str,
    interrupts: "Interrupts",
) -> None:
    """Show the answer to what was typed, and remember both."""
    from exo_cli.drive.chat import user

    prompt = prompt_of(session, driver, conversation.messages(user(text)), wanted)
    answer = await begin(driver, prompt, wanted, keep=True)
    interrupts.gently(answer.stop)
    await show(session, answer, driver, wanted)
    conversation.add(text, answer.text)


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
    import os
    from pathlib import Path

    import msgspec

    from exo_cli import atomic
    from exo_cli.errors import UsageProblem

    if not name:
        raise UsageProblem("/save needs the name of a file", hint="Say /save chat.json")
    # Unlike Path's, this leaves alone what names nobody's home.
    path = Path(os.path.expanduser(name))
    data = msgspec.json.encode({"messages": conversation.messages()})
    atomic.replace(path, msgspec.json.format(data, indent=2) + b"\n")
    session.output.note(f"saved to {path}")
