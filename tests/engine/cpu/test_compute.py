"""A stage by our kernels: near to what MLX computes, and the same however it is cut, grouped or threaded."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from exo_cli.engine import stage as stages
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute, Request
from exo_cli.engine.core import StageCore
from exo_cli.engine.cpu import plan, recognise
from exo_cli.engine.cpu.compute import NativeCompute
from exo_cli.engine.cpu.dots import POWERS
from exo_cli.engine.cpu.expand import NotNative
from exo_cli.engine.loading import load_stage, look
from exo_cli.engine.scheduler import Row
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from exo_cli.wire.frames import TensorData
from tests.support import parity
from tests.support.chain import Chain
from tests.support.tiny_models import Tiny

LAYERS = 4
TOKENS = [(37 * place + 5) % 96 for place in range(45)]
CHUNKS = (20, 1, 1, 7, 1, 1, 1, 13)
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss")
FUSED = ("llama", "qwen2", "qwen3", *MIXTURES)
FLOATS = ("bf16", "f16", "f32")
SIZES = (("hidden_size", 128), ("head_dim", 32), ("moe_intermediate_size", 64))
FORMATS: dict[str, dict[str, Any]] = {
    **{
        f"affine{bits}-{group}": {"bits": bits, "group_size": group}
        for bits in (2, 4, 8)
        for group in (32, 64)
    },
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "bf16": {"dtype": mx.bfloat16},
    "f16": {"dtype": mx.float16},
    "f32": {},
}


def native(
    directory: Path, first: int = 0, last: int = LAYERS, threads: int = 2, **options: Any
) -> NativeCompute:
    stage = load_stage(look(ModelDirectory.open(directory)), first, last).stage
    made = recognise.decoder(stage)
    return NativeCompute(stage, made, Prefixes(1 << 24), threads=threads, vocabulary=96, **options)


def exact(directory: Path) -> MlxCompute:
    stage = load_stage(look(ModelDirectory.open(directory)), 0, LAYERS).stage
    return MlxCompute(stage, (), Prefixes(0), shares=True)


def said(
    compute: MlxCompute, held: Request, chunks: Sequence[int], tokens: Sequence[int] = TOKENS
) -> np.ndarray:
    """Logits after each chunk."""
    found, at = [], 0
    for n in chunks:
        found += compute.logits([(held, Row(1, at, n))], tokens[at : at + n], None)
        at += n
    return np.array(mx.stack(found))


def through(computes: Sequence[NativeCompute], chunks: Sequence[int]) -> bytes:
    """The logits after each chunk, through a chain."""
    held = [compute.request(len(TOKENS)) for compute in computes]
    found, at = b"", 0
    for n in chunks:
        tensor: TensorData | None = None
        ids = TOKENS[at : at + n]
        for compute, mine in zip(computes[:-1], held, strict=False):
            tensor = compute.run([(mine, Row(1, at, n))], ids, tensor)
        [logits] = computes[-1].logits([(held[-1], Row(1, at, n))], ids, tensor)
        found += np.array(logits).tobytes()
        at += n
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", FUSED)
def test_every_fused_family_and_format_is_near_to_exact(family: str, form: str, tiny: Tiny) -> None:
    """Random weights: logits of a spread of 1, off by what rounding rows to int8 costs in four layers.

    A row that is rounded may go to other experts where two are as good; there each row goes to all of them.
    """
    top = () if form in FLOATS else (("num_experts_per_tok", 4),)
    directory = tiny(family, overrides=(*SIZES, *top), **FORMATS[form])
    reference = exact(directory)
    right = said(reference, Request(reference.stage.make_caches()), CHUNKS)
    compute = native(directory)
    found = said(compute, compute.request(len(TOKENS)), CHUNKS)
    bound = (0.01 if form in FLOATS else 0.35) * right.std()
    assert np.abs(found - right).max() <= bound
    ordered = np.sort(right, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > bound / 2
    assert clear.any()
    assert (found.argmax(axis=1) == right.argmax(axis=1))[clear].all()
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] >= (0.9999 if form in FLOATS else 0.98)


@pytest.mark.parametrize("family", FUSED)
def test_any_cut_chunking_and_number_of_threads_gives_the_same_bits(family: str, tiny: Tiny) -> None:
    directory = tiny(family, bits=4)
    whole = through([native(directory, threads=1)], CHUNKS)
    for cuts in ((2,), (1, 2, 3)):
        bounds = pairwise((0, *cuts, LAYERS))
        computes = [native(directory, *ends, threads=1 + number % 3) for number, ends in enumerate(bounds)]
        assert through(computes, CHUNKS) == whole
    compute = native(directory, threads=3)
    assert through([compute], CHUNKS) == whole
    # The last logits, however the tokens before them went through.
    size = len(whole) // len(CHUNKS)
    for chunks in ((45,), (1,) * 45, (2, 3, 40), (44, 1)):
        assert through([compute], chunks)[-size:] == whole[-size:]


@pytest.mark.parametrize(
    ("family", "form"),
    [("llama", "f32"), ("llama", "affine4-32"), *((family, "mxfp4") for family in MIXTURES)],
)
def test_a_request_is_the_same_alone_and_among_others(family: str, form: str, tiny: Tiny) -> None:
    compute = native(tiny(family, **FORMATS[form]), threads=2)
    prompts = [[(seed * 31 + place * 7) % 96 for place in range(3 + seed)] for seed in range(11)]
    alone = []
    for prompt in prompts:
        held = compute.request(40)
        alone.append([*said(compute, held, (len(prompt), 1, 1), [*prompt, 5, 6])])
    helds = [compute.request(40) for _ in prompts]
    # One chunk each in a single step, then two steps of one token each.
    rows = [(held, Row(number, 0, len(prompts[number]))) for number, held in enumerate(helds)]
    seen = [compute.logits(rows, [token for prompt in prompts for token in prompt], None)]
    for token in (5, 6):
        rows = [(held, Row(number, held.position, 1)) for number, held in enumerate(helds)]
        seen.append(compute.logits(rows, [token] * len(rows), None))
    for number, mine in enumerate(alone):
        for step in range(3):
            assert np.array(seen[step][number]).tobytes() == mine[step].tobytes()


def test_a_long_chunk_goes_through_in_parts(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny("llama", bits=4)
    whole = through([native(directory)], (45,))
    monkeypatch.setattr("exo_cli.engine.cpu.compute.MOST_ROWS", 7)
    computes = [native(directory, 0, 2), native(directory, 2, LAYERS)]
    assert through(computes, (45,)) == whole


@pytest.mark.parametrize(
    ("family", "form"), [("llama", "affine4-32"), ("qwen3_moe", "affine4-32"), ("gpt_oss", "mxfp4")]
)
def test_chains_batches_and_kept_prefixes_give_the_tokens_of_one_request_alone(
    family: str, form: str, tiny: Tiny
) -> None:
    """Through the real cores and the frame codec; what is right is what one request alone says."""
    directory = tiny(family, **FORMATS[form])

    def answers(bounds: tuple[int, ...], together: bool) -> list[list[int]]:
        chain = Chain([native(directory, *ends) for ends in pairwise(bounds)], budget=1 << 30)
        seen = []
        for number, prompt in enumerate(parity.ASKED):
            seen.append(chain.open(number, prompt, parity.NEW, keep_prefix=True))
            if not together:
                chain.run()
        chain.run()
        again = chain.open(100, [*parity.ASKED[0], *seen[0].tokens, 3, 4], parity.NEW)
        chain.run()
        assert again.prefix == len(parity.ASKED[0]) + parity.NEW - 1
        return [each.tokens for each in (*seen, again)]

    expected = answers((0, LAYERS), together=False)
    assert all(len(tokens) == parity.NEW for tokens in expected)
    assert answers((0, LAYERS), together=True) == expected
    assert answers((0, 1, 3, LAYERS), together=True) == expected


def test_what_travels_is_of_the_plans_type(tiny: Tiny) -> None:
    directory = tiny("llama", bits=4)
    for name, kind in (("bfloat16", mx.bfloat16), ("float16", mx.float16)):
        first, last = (native(directory, *ends, wire=kind) for ends in ((0, 2), (2, 4)))
        one, two = first.request(8), last.request(8)
        sent = first.run([(one, Row(1, 0, 3))], [1, 2, 3], None)
        assert (sent.dtype, sent.shape, len(sent.data)) == (name, (3, 64), 3 * 64 * 2)
        assert np.isfinite(np.array(last.logits([(two, Row(1, 0, 3))], [1, 2, 3], sent)[0])).all()


def test_what_is_not_sent_at_this_cut_is_refused_and_touches_no_cache(tiny: Tiny) -> None:
    compute = native(tiny("llama", bits=4), 2, LAYERS)
    held = compute.request(8)
    right = TensorData("float32", (3, 64), bytes(3 * 64 * 4))
    wrong = [
        None,
        TensorData("float32", (3, 63), bytes(3 * 63 * 4)),
        TensorData("float16", (3, 64), bytes(3 * 128)),
    ]
    for tensor in wrong:
        with pytest.raises(BadData):
            compute.logits([(held, Row(1, 0, 3))], [1, 2, 3], tensor)
    with pytest.raises(BadData, match="vocabulary"):
        compute.logits([(held, Row(1, 0, 3))], [1, 2, 1 << 20], right)
    assert (held.position, held.caches[0].offset) == (0, 0)
    compute.logits([(held, Row(1, 0, 3))], [1, 2, 3], right)
    assert held.position == 3


def test_a_token_beyond_the_embedding_is_refused_even_if_nobody_said_how_large_it_is(tiny: Tiny) -> None:
    stage = load_stage(look(ModelDirectory.open(tiny("llama", bits=4))), 0, LAYERS).stage
    compute = NativeCompute(stage, recognise.decoder(stage), Prefixes(0), threads=1)
    with pytest.raises(BadData, match="vocabulary of 96"):
        compute.logits([(compute.request(8), Row(1, 0, 1))], [96], None)


def test_the_head_is_asked_for_wanted_rows_alone(tiny: Tiny) -> None:
    compute = native(tiny("llama", bits=4))
    helds = [compute.request(8) for _ in range(3)]
    rows = [(held, Row(number, 0, 2)) for number, held in enumerate(helds)]
    tokens = compute.run_last(rows, [1, 2, 1, 2, 3, 4], None, [True, False, True])
    assert [token is None for token in tokens] == [False, True, False]
    assert compute.run_last([(helds[1], Row(1, 2, 1))], [5], None, [False]) == [None]


def test_mlx_lets_go_of_the_weights(tiny: Tiny) -> None:
    stage = load_stage(look(ModelDirectory.open(tiny("llama", bits=4))), 0, LAYERS).stage
    made = recognise.decoder(stage)
    left = sum(
        layer.mlp.down_proj.weight.nbytes + layer.self_attn.q_proj.scales.nbytes
        for layer in stage.model.layers
    )
    assert left == 0
    assert made.nbytes > 0


@pytest.mark.parametrize(("family", "why"), [("gemma3_text", "gemma3_text"), ("qwen2_moe", "qwen2_moe")])
def test_other_families_are_refused_before_anything_is_converted(family: str, why: str, tiny: Tiny) -> None:
    stage = load_stage(look(ModelDirectory.open(tiny(family))), 0, LAYERS).stage
    with pytest.raises(NotNative, match=why):
        recognise.decoder(stage)


def test_windows_are_those_of_the_models_caches(tiny: Tiny) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    directory = tiny("llama", overrides=(("layer_types", kinds), ("sliding_window", 8)))
    reference, compute = exact(directory), native(directory)
    assert [layer.window for layer in compute.decoder.layers] == [0, 8, 0, 8]
    right = said(reference, Request(reference.stage.make_caches()), CHUNKS)
    found = said(compute, compute.request(len(TOKENS)), CHUNKS)
    assert np.abs(found - right).max() <= 0.01
    whole = through([compute], CHUNKS)
    size = len(whole) // len(CHUNKS)
    assert through([native(directory, 0, 2), native(directory, 2, LAYERS)], (45,)) == whole[-size:]


@pytest.mark.parametrize("normed", [True, False])
def test_layers_with_experts_and_without_go_together(normed: bool, tiny: Tiny) -> None:
    overrides = ("mlp_only_layers", [1, 2]), ("norm_topk_prob", normed)
    directory = tiny("qwen3_moe", overrides=overrides)
    reference, compute = exact(directory), native(directory)
    assert [isinstance(layer.mlp, plan.Experts) for layer in compute.decoder.layers] == [1, 0, 0, 1]
    right = said(reference, Request(reference.stage.make_caches()), CHUNKS)
    found = said(compute, compute.request(len(TOKENS)), CHUNKS)
    assert np.abs(found - right).max() <= 0.01 * right.std()
    chain = [native(directory, *ends) for ends in pairwise((0, 1, 3, LAYERS))]
    assert through(chain, CHUNKS) == through([compute], CHUNKS)


def test_experts_may_be_packed_otherwise_than_the_rest(tiny: Tiny) -> None:
    """As gpt-oss is published: experts in mxfp4, linears in 8 bits or bfloat16, the router as it is."""
    settings = {"num_experts_per_tok": 4, **dict(SIZES)}
    directory = tiny("gpt_oss", overrides=tuple(settings.items()), dtype=mx.bfloat16)
    stage = load_stage(look(ModelDirectory.open(directory)), 0, LAYERS).stage
    for layer in stage.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            one = layer.mlp.experts[name]
            layer.mlp.experts[name] = one.to_quantized(group_size=32, bits=4, mode="mxfp4")
        layer.self_attn.o_proj = layer.self_attn.o_proj.to_quantized(group_size=32, bits=8)
    # First what MLX makes of it: its weights are let go when ours are made.
    reference = MlxCompute(stage, (), Prefixes(0), shares=True)
    right = said(reference, Request(stage.make_caches()), CHUNKS)
    made = recognise.decoder(stage)
    assert (made.layers[0].one.down.kind, made.layers[0].out.bits) == (POWERS, 8)
    compute = NativeCompute(stage, made, Prefixes(0), threads=2, vocabulary=96)
    found = said(compute, compute.request(len(TOKENS)), CHUNKS)
    assert np.abs(found - right).max() <= 0.35 * right.std()


def load(directory: Path, **options: Any) -> tuple[StageCore[Any], dict[str, Any]]:
    settings = {"memory_bytes": 1 << 30, "progress": lambda *_: None, **options}
    return stages.load(str(directory), layers=(0, LAYERS), layers_in_model=LAYERS, **settings)


def test_a_stage_says_how_it_computes_and_why(tiny: Tiny) -> None:
    core, ready = load(tiny("llama", bits=4), numerics="fast")
    assert isinstance(core.compute, NativeCompute)
    assert (ready["numerics"], ready["numerics_reason"]) == ("fast", "")
    assert ready["weights_bytes"] == core.compute.decoder.nbytes
    core, ready = load(tiny("gemma3_text"), numerics="fast")
    assert not isinstance(core.compute, NativeCompute)
    assert ready["numerics"] == "exact"
    assert "gemma3_text" in ready["numerics_reason"]
    core, ready = load(tiny("llama", bits=4))
    assert not isinstance(core.compute, NativeCompute)
    assert (ready["numerics"], ready["numerics_reason"]) == ("exact", "")


def test_rotary_positions_are_those_of_the_model(tiny: Tiny) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    directory = tiny("llama", overrides=(("rope_scaling", scaling), ("rope_traditional", True)))
    reference, compute = exact(directory), native(directory)
    right = said(reference, Request(reference.stage.make_caches()), CHUNKS)
    found = said(compute, compute.request(len(TOKENS)), CHUNKS)
    assert np.abs(found - right).max() <= 0.01


def test_rooms_grow_with_what_is_asked() -> None:
    shape = plan.Shape(64, 4, 2, 16, 128, 1e-5, 0.0, 0.25)
    rooms = plan.Rooms(shape, record=128, hidden_record=192, threads=2, layers=1)
    rooms.fit(3, 10)
    assert rooms.x.shape == (3, 64)
    rooms.fit(1, 2000)
    assert (rooms.rows, rooms.positions) == (3, 2048)
