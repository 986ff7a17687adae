import pytest

from exo_cli.drive.chat import Chat, Command, Lines, Meaning, More, Say, Unknown, one_question, user


def meant(*typed: str) -> list[Meaning]:
    lines = Lines()
    return [lines.feed(line) for line in typed]


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello", Say("hello")),
        ("  /help ", Command("help", "")),
        ("/system You are a cat.", Command("system", "You are a cat.")),
        ("/save my chat.json", Command("save", "my chat.json")),
        ("/sing", Unknown("/sing")),
        ("/etc/hosts: what is it?", Say("/etc/hosts: what is it?")),
        ("/ 2 is what?", Say("/ 2 is what?")),
        ('"""one line"""', Say("one line")),
        ("", Say("")),
    ],
)
def test_what_a_line_means(line: str, meaning: Meaning) -> None:
    assert meant(line) == [meaning]


def test_messages_of_several_lines() -> None:
    assert meant('"""', "/help is no command here", "", 'end"""') == [
        *(More(), More(), More()),
        Say("/help is no command here\n\nend"),
    ]
    assert meant('"""first', '"""') == [More(), Say("first")]
    assert meant("one \\", "two") == [More(), Say("one \ntwo")]


def test_a_message_that_was_begun_can_be_dropped() -> None:
    lines = Lines()
    assert lines.feed('"""half') == More()
    assert lines.drop()
    assert not lines.drop()
    assert lines.feed("new") == Say("new")


def test_the_conversation() -> None:
    chat = Chat("Be brief.")
    chat.add("hello", "hi")
    assert [message["role"] for message in chat.messages(user("more"))] == [
        *("system", "user", "assistant", "user")
    ]
    chat.clear()
    assert chat.messages() == [{"role": "system", "content": "Be brief."}]
    assert one_question("why?", None) == [{"role": "user", "content": "why?"}]
