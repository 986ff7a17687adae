"""The tokenizer, trained on the corpus, and the chat template: text to the ids that the model reads.

The template writes questions in lower case and keeps one turn of history: so small a model learns
less from more. Knows nothing of training.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pocket.corpus import Corpus, Turn

SIZE: Final = 2048
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL: Final = (END, USER, ASSISTANT)
KEPT_MESSAGES: Final = 3
SAMPLE: Final = 60_000
"""Conversations that it is trained on."""
_ANSWERS: Final = 60
"""How often each answer stands in the sample, so that its words become whole tokens."""

TEMPLATE: Final = (
    "{%- set said = messages | rejectattr('role', 'equalto', 'system') | list -%}"
    "{%- for message in said[-" + str(KEPT_MESSAGES) + ":] -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{ '" + ASSISTANT + "' + message.content | trim + '" + END + "' }}"
    "{%- else -%}"
    "{{ '" + USER + " ' + message.content | lower | trim | replace('\u2019', \"'\") + '" + END + "' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '" + ASSISTANT + "' }}{%- endif -%}"
)


def train(corpus: Corpus, seed: int, *, sample: int = SAMPLE) -> Tokenizer:
    rng = Random(seed)
    texts = [f" {turn.question}" for _ in range(sample) for turn in corpus.conversation(rng)]
    texts += [answer for intent in corpus.known.intents for answer in intent.answers] * _ANSWERS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def config() -> dict[str, Any]:
    """What stands in tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "bos_token": None,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


def prompt(turns: Sequence[Turn]) -> str:
    """As the template writes it, up to where the answer to the last question begins."""
    text = ""
    for turn in turns:
        text += f"{USER} {turn.question.strip()}{END}{ASSISTANT}"
        if turn is not turns[-1]:
            text += f"{turn.answer}{END}"
    return text


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def end_id(tokenizer: Tokenizer) -> int:
    """The id that ends a turn."""
    found = tokenizer.token_to_id(END)
    if found is None:
        raise ValueError(f"the tokenizer has no {END}")
    return int(found)
