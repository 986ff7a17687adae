"""A chain of stages gives mlx-lm's own numbers, bit for bit, at every cut that a family allows."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.engine import loading
from exo_cli.engine.slicing import Position
from exo_cli.errors import BadData, Internal
from tests.support import parity
from tests.support.tiny_models import Tiny

FAMILIES = (
    *("llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "deepseek_v3", "gemma3_text", "gpt_oss"),
    *("mixtral", "phi3", "glm4_moe", "nemotron_h", "falcon_h1", "granitemoehybrid"),
)


def test_no_family_is_left_out() -> None:
    assert len(set(FAMILIES)) >= 12


@pytest.mark.parametrize("bits", [None, 4], ids=["float32", "4bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_is_unsplit(family: str, bits: int | None, tiny: Tiny) -> None:
    directory = tiny(family, bits=bits)
    expected = parity.unsplit(directory)
    assert len(expected[0]) >= 8
    assert all(bool(mx.all(mx.isfinite(row)).item()) for row in expected[1])
    skeleton = parity.skeleton_of(directory)
    allowed = skeleton.anatomy.allowed
    assert allowed == (1, 2, 3)
    for cuts in [(), *((cut,) for cut in allowed), allowed]:
        assert parity.differences(expected, parity.chain(skeleton, cuts)) is None, cuts


@pytest.mark.parametrize(
    ("family", "widths"),
    [
        ("rwkv7", [128, 128, 128]),  # the first layer's values go along
        ("hunyuan", [128, 64, 128]),  # keys and values of the layer before, every second time
        ("gemma4_text", [64, 64]),  # the ids and the embedding are needed at every stage
        ("talkie", [64, 64, 64]),  # so is the embedding's output here
        ("bailing_moe_linear", [64, 64, 64]),  # recurrent layers ask an attention cache for the position
    ],
)
def test_families_that_send_or_need_more(family: str, widths: list[int], tiny: Tiny) -> None:
    directory = tiny(family)
    skeleton = parity.skeleton_of(directory)
    allowed = skeleton.anatomy.allowed
    assert [skeleton.anatomy.payload_at(cut).width for cut in allowed] == widths
    expected = parity.unsplit(directory)
    for cuts in [*((cut,) for cut in allowed), allowed]:
        assert parity.differences(expected, parity.chain(skeleton, cuts)) is None, cuts


def test_the_comparison_can_fail(tiny: Tiny) -> None:
    expected = parity.unsplit(tiny("llama"))
    assert parity.differences(expected, parity.unsplit(tiny("llama", seed=8))) is not None
    tokens, rows = expected
    nearly = [*rows[:-1], rows[-1] + 1e-6]
    assert "logits differ" in str(parity.differences(expected, (tokens, nearly)))


def test_a_stage_keeps_the_caches_of_its_layers_only(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("gpt_oss"))
    stages = [loading.load_stage(skeleton, a, b).stage for a, b in [(0, 1), (1, 3), (3, 4)]]
    assert [stage.owned for stage in stages] == [(0,), (1, 2), (3,)]
    kinds = [[type(cache).__name__ for cache in stage.make_caches()] for stage in stages]
    assert kinds == [["RotatingKVCache"], ["KVCache", "RotatingKVCache"], ["KVCache"]]


def test_a_stage_without_attention_counts_its_tokens(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("qwen3_next"))
    stage = loading.load_stage(skeleton, 0, 1).stage
    caches = stage.make_caches()
    counter = caches[-1]
    assert isinstance(counter, Position)
    for tokens, total in (([[1, 2, 3]], 3), ([[4]], 4)):
        mx.eval(stage.forward(mx.array(tokens), None, caches))
        assert counter.offset == total
    assert counter.state[:2] == (None, None)


def test_rows_of_a_batch_are_computed_alike(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("qwen3"))
    stage = loading.load_stage(skeleton, 0, 2).stage
    rows = mx.array([[1, 2, 3], [4, 5, 6]])
    (both,) = stage.forward(rows, None, stage.make_caches())
    for row in range(2):
        (alone,) = stage.forward(rows[row : row + 1], None, stage.make_caches())
        assert mx.array_equal(both[row : row + 1], alone)


def test_what_does_not_fit_a_stage_is_refused(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("llama"))
    first, last = (loading.load_stage(skeleton, a, b).stage for a, b in [(0, 2), (2, 4)])
    ids = mx.array([[1, 2]])
    good = mx.zeros((1, 2, 64))
    with pytest.raises(BadData, match="to the first stage"):
        first.forward(ids, (good,), first.make_caches())
    with pytest.raises(BadData, match="without a payload"):
        last.forward(ids, None, last.make_caches())
    for payload in [
        (mx.zeros((1, 3, 64)),),
        (mx.zeros((1, 2, 32)),),
        (good.astype(mx.float16),),
        (good, good),
    ]:
        with pytest.raises(BadData):
            last.forward(ids, payload, last.make_caches())
    with pytest.raises(Internal):
        last.forward(ids, (good,), [])
    logits = last.forward(ids, (good,), last.make_caches())
    assert isinstance(logits, mx.array)
    assert logits.shape == (1, 2, 96)


def test_a_forward_that_fails_leaves_the_stage_usable(tiny: Tiny) -> None:
    stage = loading.load_stage(parity.skeleton_of(tiny("llama")), 0, 2).stage
    with pytest.raises(ValueError, match=r"."):
        stage.forward(mx.array([1, 2]), None, stage.make_caches())
    (out,) = stage.forward(mx.array([[1, 2]]), None, stage.make_caches())
    assert out.shape == (1, 2, 64)


def test_a_whole_model_is_a_stage_too(tiny: Tiny) -> None:
    directory: Path = tiny("llama")
    loaded = loading.load_stage(parity.skeleton_of(directory), 0, 4)
    assert loaded.stage.receives is None
    assert loaded.stage.sends is None
    assert len(loaded.stage.make_caches()) == len(make_prompt_cache(loaded.stage.model))
