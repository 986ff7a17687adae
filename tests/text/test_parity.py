"""Ours against transformers on the same directory: the same text byte for byte, and the same ids."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData
from exo_cli.text.chat import Language
from exo_cli.text.tokenizer import load_tokenizer
from tests.support import chat_styles
from tests.support.languages import CORPUS, KINDS, SPECIAL, model_directory

pytestmark = pytest.mark.process

# Reads jobs, answers with what transformers says; a failure is answered as null and the error's text.
THEIRS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoTokenizer
def answer(job):
    tokenizer = AutoTokenizer.from_pretrained(job["directory"])
    if "text" in job:
        return [tokenizer.encode(job["text"]), tokenizer.encode(job["text"], add_special_tokens=False)]
    if "ids" in job:
        return [tokenizer.decode(job["ids"], skip_special_tokens=skip) for skip in (True, False)]
    if "facts" in job:
        return [tokenizer.special_tokens_map, sorted(tokenizer.all_special_ids), tokenizer.eos_token_id]
    text = tokenizer.apply_chat_template(
        job["messages"], tools=job["tools"], tokenize=False,
        add_generation_prompt=job["prompt"], **job["options"])
    ids = tokenizer.apply_chat_template(
        job["messages"], tools=job["tools"], tokenize=True, return_dict=False,
        add_generation_prompt=job["prompt"], **job["options"])
    return [text, ids]
def safe(job):
    try:
        return answer(job)
    except Exception as error:
        return [None, str(error)]
json.dump([safe(job) for job in json.load(sys.stdin)], sys.stdout)
"""


def theirs(jobs: list[dict[str, Any]]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", THEIRS],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_templates_render_the_same(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "image_token": "<|im_start|>",
    }
    jobs: list[dict[str, Any]] = []
    for style, source in chat_styles.STYLES.items():
        directory = model_directory(
            tmp_path / style, tokenizer_config__json=config, chat_template__jinja=source
        )
        for messages in chat_styles.CHATS.values():
            for tools in (None, chat_styles.TOOLS):
                for prompt in (True, False):
                    for options in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                        jobs.append(
                            {
                                "directory": str(directory),
                                "messages": messages,
                                "tools": tools,
                                "prompt": prompt,
                                "options": options,
                            }
                        )
    languages = {style: Language.load(tmp_path / style) for style in chat_styles.STYLES}
    rendered = Counter[str]()
    for job, (text, ids) in zip(jobs, theirs(jobs), strict=True):
        language = languages[Path(job["directory"]).name]
        try:
            ours = language.chat(
                job["messages"],
                tools=job["tools"],
                options=job["options"],
                add_generation_prompt=job["prompt"],
            )
        except BadData:
            found: tuple[str | None, list[int]] = (None, [])
        else:
            found = (ours.text, list(ours.ids))
            rendered[Path(job["directory"]).name] += 1
        assert found == (text, [] if text is None else ids), job
    most = len(jobs) // len(chat_styles.STYLES)
    assert all(rendered[style] >= most // 2 for style in chat_styles.STYLES), rendered


def test_think_is_what_transformers_calls_enable_thinking(tmp_path: Path) -> None:
    directory = model_directory(
        tmp_path / "m",
        tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast"},
        chat_template__jinja=chat_styles.THINKING,
    )
    language = Language.load(directory)
    jobs, ours = [], []
    for messages in chat_styles.CHATS.values():
        for think, options in (
            (None, {}),
            (True, {"enable_thinking": True}),
            (False, {"enable_thinking": False}),
        ):
            job = {"directory": str(directory), "messages": messages, "tools": None, "prompt": True}
            jobs.append({**job, "options": options})
            try:
                ours.append(list(language.chat(messages, think=think).ids))
            except BadData:
                ours.append([])
    said = [[] if text is None else ids for text, ids in theirs(jobs)]
    assert ours == said
    # The switch does something, in every chat that can be put into this template.
    assert all(said[at + 1] != said[at + 2] for at in range(0, len(said), 3) if said[at])
    assert any(said)


def test_the_date_is_today(tmp_path: Path) -> None:
    """Both read the same clock; at midnight one may be a day ahead, so a second try is allowed."""
    directory = model_directory(tmp_path / "m", chat_template__jinja="{{ strftime_now('%A %d %B %Y') }}")
    messages = chat_styles.CHATS["one"]
    chat: dict[str, Any] = {
        "messages": chat_styles.CHATS["one"],
        "tools": None,
        "prompt": True,
        "options": {},
    }
    for _ in range(2):
        ours = Language.load(directory).chat(messages).text
        same = theirs([{"directory": str(directory), **chat}])[0][0] == ours
        if same:
            break
    assert same


def test_template_choice_is_the_same(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "default"}, {"name": "tool_use", "template": "for tools"}]
    directories = [
        model_directory(tmp_path / "list", tokenizer_config__json={"chat_template": named}),
        model_directory(
            tmp_path / "both",
            tokenizer_config__json={"chat_template": "x"},
            chat_template__jinja="file\r\nend\r",
        ),
        model_directory(tmp_path / "more", chat_template__jinja="main"),
        model_directory(tmp_path / "string", tokenizer_config__json={"chat_template": "in config\r\n"}),
    ]
    (tmp_path / "more" / "additional_chat_templates").mkdir()
    (tmp_path / "more" / "additional_chat_templates" / "tool_use.jinja").write_text("more for tools")
    messages = chat_styles.CHATS["one"]
    jobs: list[dict[str, Any]] = [
        {"directory": str(directory), "messages": messages, "tools": tools, "prompt": True, "options": {}}
        for directory in directories
        for tools in (None, chat_styles.TOOLS)
    ]
    texts = [Language.load(Path(job["directory"])).chat(messages, tools=job["tools"]).text for job in jobs]
    assert texts == [text for text, _ in theirs(jobs)]
    assert len(set(texts)) == 6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "words"])
def test_ids_and_texts_are_the_same(kind: str, tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"bos_token": "<s>", "eos_token": "</s>"},
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<tool_call>"]},
    ]
    jobs: list[dict[str, Any]] = []
    texts = [*CORPUS[:7], "<s> twice", " a <think>b</think> <tool_call>", "", "e\u0301 🙂 <|im_end|>x"]
    for number, config in enumerate(configs):
        directory = str(
            model_directory(
                tmp_path / str(number),
                kind,
                tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast", **config},
            )
        )
        jobs += [{"directory": directory, "text": text} for text in texts]
        jobs += [
            {"directory": directory, "ids": list(range(start, start + 60))} for start in range(0, 420, 60)
        ]
    for job, answer in zip(jobs, theirs(jobs), strict=True):
        ours = load_tokenizer(Path(job["directory"]))
        if "text" in job:
            assert [ours.encode(job["text"]), ours.encode(job["text"], special=False)] == answer, job
        else:
            skipped, shown = (ours.decode(job["ids"], skip_special=skip) for skip in (True, False))
            assert [skipped, shown] == answer, job


def test_special_tokens_are_the_same(tmp_path: Path) -> None:
    made = model_directory(tmp_path / "first")
    start = load_tokenizer(made).vocabulary_size
    new = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    listed = {
        str(start): {"content": "<new>", **new, "special": False},
        str(start + 1): {"content": "<new special>", **new, "special": True},
        str(load_tokenizer(made).id_of("<think>")): {"content": "<think>", **new, "special": True},
    }
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    directories = [
        made,
        model_directory(
            tmp_path / "map",
            tokenizer_config__json=usual,
            special_tokens_map__json={"eos_token": {"content": "</s>", **new}, "pad_token": "<|im_end|>"},
        ),
        model_directory(
            tmp_path / "listed",
            tokenizer_config__json={**usual, "eos_token": "<think>", "added_tokens_decoder": listed},
            special_tokens_map__json={"eos_token": "</s>"},
        ),
    ]
    text = f"a<new>b<new special> {' '.join(SPECIAL)} <think>"
    jobs = [
        job
        for directory in map(str, directories)
        for job in ({"directory": directory, "facts": 1}, {"directory": directory, "text": text})
    ]
    answers = theirs(jobs)
    for directory, facts, (_, ids) in zip(directories, answers[::2], answers[1::2], strict=True):
        ours = load_tokenizer(directory)
        named, _, end = facts
        assert ours.special_tokens == named
        assert ours.stop_ids == {end}
        assert ours.encode(text, special=False) == ids
        decoded = theirs([{"directory": str(directory), "ids": ids}])[0]
        assert [ours.decode(ids), ours.decode(ids, skip_special=False)] == decoded
