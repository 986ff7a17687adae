"""The exporter writes what MLX would: the same codes, the same scales, a directory that loads."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exo_cli.models.directory import ModelDirectory
from exo_cli.text.chat import Language
from pocket import export, vocabulary
from pocket.corpus import Corpus, Turn
from pocket.rounding import GROUP, quantized, restored
from pocket.topics import load

HIDDEN, INNER = 64, 128
SHAPE = {
    "hidden": HIDDEN,
    "inner": INNER,
    "layers": 2,
    "heads": 1,
    "vocabulary": vocabulary.SIZE,
    "context": 1024,
    "theta": 10_000.0,
    "epsilon": 1e-5,
}


def weights(rng: np.random.Generator) -> dict[str, Any]:
    d, f = HIDDEN, INNER
    shapes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (d, d), "self_attn.v_proj": (d, d)}
    shapes |= {
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    found = {
        "model.embed_tokens.weight": rng.normal(size=(vocabulary.SIZE, d)),
        "model.norm.weight": np.ones(d),
    }
    for n in range(2):
        for name, shape in shapes.items():
            found[f"model.layers.{n}.{name}.weight"] = rng.normal(size=shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{n}.{name}.weight"] = np.ones(d)
    return {name: value.astype(np.float32) for name, value in found.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a trainer leaves, with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    vocabulary.train(Corpus(load()), 0, sample=3000).save(str(folder / "tokenizer.json"))
    save_file(weights(np.random.default_rng(0)), folder / "weights.safetensors")
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_rounding_is_what_mlx_does(seed: int) -> None:
    import mlx.core as mx

    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(96, 4 * GROUP)) * 10.0 ** rng.integers(-4, 2)).astype(np.float32)
    weight[0] = 0.0
    weight[1] = 0.25
    weight[2] = np.abs(weight[2])
    weight[3] = -np.abs(weight[3])
    codes, scales, biases = (
        np.array(part) for part in mx.quantize(mx.array(weight), group_size=GROUP, bits=4)
    )
    ours = quantized(weight)
    assert np.array_equal(ours[0], codes)
    assert np.array_equal(ours[1], scales.astype(np.float16))
    assert np.array_equal(ours[2], biases.astype(np.float16))
    theirs = mx.dequantize(
        mx.array(ours[0]),
        mx.array(ours[1]).astype(mx.float32),
        mx.array(ours[2]).astype(mx.float32),
        group_size=GROUP,
        bits=4,
    )
    assert np.allclose(restored(*ours), np.array(theirs), rtol=1e-6, atol=1e-7)


def test_the_directory_is_one_that_exo_and_mlx_lm_load(trained: Path, tmp_path: Path) -> None:
    import mlx_lm

    model = tmp_path / "model"
    size = export.export(trained, model)
    assert size == sum(path.stat().st_size for path in model.iterdir())
    directory = ModelDirectory.open(model)
    assert directory.model_type == "llama"
    assert directory.has_tokenizer
    network, tokenizer, *_ = mlx_lm.load(str(model))
    text = mlx_lm.generate(network, tokenizer, [1, 5, 0, 2], max_tokens=3)
    assert isinstance(text, str)


def test_tensors_are_read_back_as_they_were_rounded(trained: Path, tmp_path: Path) -> None:
    export.export(trained, tmp_path / "model")
    written = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    parts = (written[f"{name}.weight"], written[f"{name}.scales"], written[f"{name}.biases"])
    original = load_file(trained / "weights.safetensors")[f"{name}.weight"]
    assert np.array_equal(restored(*parts), restored(*quantized(original)))
    assert np.abs(restored(*parts) - original).max() < np.abs(original).max() / 6


def test_too_large_a_model_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="1,000 are allowed"):
        export.export(trained, tmp_path / "model")


def test_the_trainer_and_the_chat_template_write_the_same_prompt(trained: Path, tmp_path: Path) -> None:
    export.export(trained, tmp_path / "model")
    language = Language.load(tmp_path / "model")
    corpus, rng = Corpus(load()), Random(8)
    for _ in range(200):
        turns = corpus.conversation(rng)
        messages = []
        for turn in turns:
            messages.append(
                {"role": "user", "content": turn.question.upper() if len(turns) == 1 else turn.question}
            )
            messages.append({"role": "assistant", "content": turn.answer})
        prompt = language.chat(messages[:-1])
        assert prompt.text == vocabulary.prompt(turns)
        assert (
            list(prompt.ids)
            == vocabulary.load(trained / "tokenizer.json")
            .encode(vocabulary.prompt(turns), add_special_tokens=False)
            .ids
        )


def test_a_long_chat_keeps_its_last_turn(trained: Path, tmp_path: Path) -> None:
    export.export(trained, tmp_path / "model")
    language = Language.load(tmp_path / "model")
    intent = load().intents[0]
    chat = [{"role": "system", "content": "Be brief."}]
    for n in range(5):
        chat += [
            {"role": "user", "content": f"Question {n}"},
            {"role": "assistant", "content": f"Answer {n}"},
        ]
    chat = chat[:-1]
    turns = [Turn("question 3", intent, "Answer 3"), Turn("question 4", intent, "")]
    assert language.chat(chat).text == vocabulary.prompt(turns)
