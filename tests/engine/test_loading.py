"""Loading a stage: only its bytes are read, every layout and quantization, and what is refused."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from exo_cli.engine import families, loading
from exo_cli.errors import BadData, ExoError
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import BITS
from tests.support import parity, tiny_models
from tests.support.tiny_models import Tiny


def exact(directory: Path, skeleton: loading.Skeleton | None = None) -> None:
    skeleton = skeleton or parity.skeleton_of(directory)
    expected = parity.unsplit(directory)
    for cuts in ((2,), skeleton.anatomy.allowed):
        assert parity.differences(expected, parity.chain(skeleton, cuts)) is None


# ----------------------------------------------------------------- what is read


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts the bytes that are read")
@pytest.mark.parametrize("files", [1, 3])
def test_no_more_is_read_than_the_stages_tensors(files: int, tiny: Tiny) -> None:
    directory = tiny("llama", files=files, overrides=(("hidden_size", 256), ("vocab_size", 2000)))
    skeleton = parity.skeleton_of(directory)
    for first, last in [(0, 1), (1, 3), (3, 4)]:
        needed = sum(info.nbytes for info in skeleton.tensors(first, last))
        headers = sum(header.data_start for header in skeleton.directory.files)
        before = _read_bytes()
        loaded = loading.load_stage(skeleton, first, last)
        read = _read_bytes() - before
        assert loaded.read_bytes == needed == loaded.weights_bytes
        assert needed < skeleton.directory.weights_bytes / 2
        # MLX reads each header twice; config.json is read again by mlx-lm
        assert needed <= read <= needed + 3 * headers + 3 * files * 4096 + 20_000


def _read_bytes() -> int:
    """What this process asked of read(), in bytes, whether or not it came from a disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "deepseek_v3", "nemotron_h"])
def test_bytes_of_other_stages_do_not_matter(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """What a partial store has: the headers, the stage's bytes, and rubbish in place of the rest."""
    whole = parity.skeleton_of(tiny(family, bits=4))
    parts = []
    for number, (first, last) in enumerate([(0, 2), (2, 4)]):
        copy = tmp_path / str(number)
        shutil.copytree(whole.directory.path, copy)
        mine = {info.name for info in whole.tensors(first, last)}
        for info in whole.directory.tensors.values():
            if info.name not in mine:
                with (copy / info.file).open("r+b") as file:
                    file.seek(info.start)
                    file.write(b"\xff" * info.nbytes)
        parts.append(loading.load_stage(parity.skeleton_of(copy), first, last).stage)
    expected = parity.unsplit(whole.directory.path)
    caches = [stage.make_caches() for stage in parts]

    def step(tokens: mx.array) -> mx.array:
        payload = parts[0].forward(tokens, None, caches[0])
        assert isinstance(payload, tuple)
        logits = parts[1].forward(tokens, payload, caches[1])
        assert isinstance(logits, mx.array)
        return logits

    assert parity.differences(expected, parity.generate(step)) is None


def test_what_is_not_the_stages_is_not_a_number(tiny: Tiny) -> None:
    """If a mistake made a stage read a weight that it does not have, everything would show it."""
    stage = loading.load_stage(parity.skeleton_of(tiny("llama")), 1, 2).stage
    weights = dict(tree_flatten(stage.model.parameters()))
    assert mx.all(mx.isnan(weights["model.layers.0.mlp.up_proj.weight"])).item()
    assert mx.all(mx.isnan(weights["lm_head.weight"])).item()
    assert not mx.any(mx.isnan(weights["model.layers.1.mlp.up_proj.weight"])).item()


def test_tied_embeddings_are_at_both_ends(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("qwen2"))
    name = "model.embed_tokens.weight"
    held = [name in {info.name for info in skeleton.tensors(n, n + 1)} for n in range(4)]
    assert held == [True, False, False, True]
    untied = parity.skeleton_of(tiny("llama"))
    held = [name in {info.name for info in untied.tensors(n, n + 1)} for n in range(4)]
    assert held == [True, False, False, False]


def test_progress_is_told_layer_by_layer(tiny: Tiny) -> None:
    heard: list[tuple[int, int]] = []
    loading.load_stage(
        parity.skeleton_of(tiny("llama")), 1, 4, progress=lambda done, total: heard.append((done, total))
    )
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


# ----------------------------------------------------------------- layouts and formats


def raw_mixtral(tiny: Tiny, directory: Path) -> Path:
    """As Hugging Face publishes it: an expert's matrices one by one, under other names."""
    source = ModelDirectory.open(tiny("mixtral"))
    weights: dict[str, mx.array] = {}
    for header in source.files:
        loaded = mx.load(str(source.path / header.file))
        assert isinstance(loaded, dict)
        weights |= loaded
    raw = {}
    for name, array in weights.items():
        part = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.get(name.split(".")[-2])
        if part is None or "switch_mlp" not in name:
            raw[name] = array
            continue
        for expert in range(array.shape[0]):
            raw[f"{name.split('switch_mlp')[0]}experts.{expert}.{part}.weight"] = array[expert]
    tiny_models.save(raw, source.config, directory, files=2)
    return directory


def test_a_family_that_looks_at_layer_0_to_repair_its_names(tiny: Tiny, tmp_path: Path) -> None:
    directory = raw_mixtral(tiny, tmp_path / "raw")
    skeleton = parity.skeleton_of(directory)
    names = {info.name for info in skeleton.tensors(2, 3)}
    assert sum(".experts." in name for name in names) == 4 * 3
    assert all(name.startswith("model.layers.2.") for name in names)
    assert parity.unsplit(directory)[0] == parity.unsplit(tiny("mixtral"))[0]
    exact(directory, skeleton)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [
        *(("affine", bits, 32) for bits in (2, 3, 5, 6, 8)),
        ("affine", 4, 64),
        ("mxfp4", 4, 32),
        ("mxfp8", 8, 32),
        ("nvfp4", 4, 16),
    ],
)
def test_every_quantization(mode: str, bits: int, group_size: int, tiny: Tiny) -> None:
    exact(tiny("llama", mode=mode, bits=bits, group_size=group_size))
    exact(tiny("mixtral", mode=mode, bits=bits, group_size=group_size))


def test_a_path_may_be_quantized_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    directory = tiny("llama", bits=4)
    model = tiny_models.reference(directory)
    settings = json.loads((directory / "config.json").read_text())
    layer = model.model.layers[2].mlp
    layer.down_proj = _requantized(layer.down_proj, bits=8, group_size=64)
    settings["quantization"]["model.layers.2.mlp.down_proj"] = {"bits": 8, "group_size": 64}
    tiny_models.save(dict(tree_flatten(model.parameters())), settings, tmp_path / "mixed")
    exact(tmp_path / "mixed")


def _requantized(linear: Any, **options: int) -> Any:
    import mlx.nn as nn

    weight = mx.dequantize(linear.weight, linear.scales, linear.biases, group_size=linear.group_size, bits=4)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    plain.weight = weight
    return plain.to_quantized(**options)


@pytest.mark.parametrize("bits", [None, 4])
def test_exact_casts_fractions_and_leaves_packed_numbers(bits: int | None, tiny: Tiny) -> None:
    directory = tiny("llama", bits=bits, dtype=mx.bfloat16)
    loaded = loading.load_stage(parity.skeleton_of(directory), 0, 4)
    kinds = {array.dtype for _, array in tree_flatten(loaded.stage.model.parameters())}
    assert kinds == ({mx.float32} if bits is None else {mx.float32, mx.uint32})
    as_it_is = loading.load_stage(loading.look(ModelDirectory.open(directory), None), 0, 4)
    kinds = {array.dtype for _, array in tree_flatten(as_it_is.stage.model.parameters())}
    assert kinds == ({mx.bfloat16} if bits is None else {mx.bfloat16, mx.uint32})
    assert as_it_is.weights_bytes < loaded.weights_bytes


def test_a_cast_chain_is_mlx_lm_cast_alike(tiny: Tiny) -> None:
    directory = tiny("qwen3_moe", bits=4, dtype=mx.bfloat16)
    model = tiny_models.reference(directory)
    model.apply(lambda array: array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    expected = parity.run_unsplit(model)
    assert parity.differences(expected, parity.chain(parity.skeleton_of(directory), (1, 3))) is None


def test_what_is_cast_is_not_kept_twice(tiny: Tiny) -> None:
    directory = tiny("llama", dtype=mx.bfloat16, overrides=(("hidden_size", 512), ("vocab_size", 4000)))
    skeleton = parity.skeleton_of(directory)
    mx.clear_cache()
    before = mx.get_active_memory()
    loaded = loading.load_stage(skeleton, 0, 3)
    held = mx.get_active_memory() - before
    assert loaded.weights_bytes == 2 * loaded.read_bytes
    assert 0.95 * loaded.weights_bytes <= held <= 1.02 * loaded.weights_bytes + 100_000


# ----------------------------------------------------------------- chains


def test_every_layer_has_one_owner(tiny: Tiny) -> None:
    skeleton = parity.skeleton_of(tiny("llama"))
    assert skeleton.check_chain([(0, 1), (1, 3), (3, 4)]) == ()
    for stages, says in [
        ([(0, 2), (1, 4)], "layer 1 belongs to two stages"),
        ([(0, 2), (3, 4)], "layer 2 belongs to no stage"),
        ([(0, 2), (2, 3)], "layer 3 belongs to no stage"),
        ([(1, 4)], "layer 0 belongs to no stage"),
        ([(0, 5)], "of a model that has 4"),
    ]:
        with pytest.raises(BadData, match=says):
            skeleton.check_chain(stages)


def test_tensors_that_no_stage_reads_are_named(tiny: Tiny, tmp_path: Path) -> None:
    source = ModelDirectory.open(tiny("llama"))
    weights = mx.load(str(source.path / "model.safetensors"))
    assert isinstance(weights, dict)
    extra = ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    tiny_models.save({**weights, extra[0]: mx.zeros((8,))}, source.config, tmp_path / "m")
    skeleton = parity.skeleton_of(tmp_path / "m")
    assert skeleton.check_chain([(0, 4)]) == extra
    assert skeleton.check_chain([(0, 2), (2, 4)]) == extra


# ----------------------------------------------------------------- what is refused


def edited(
    tiny: Tiny, directory: Path, change: Callable[[dict[str, Any]], None], family: str = "llama"
) -> Path:
    shutil.copytree(tiny(family), directory)
    settings = json.loads((directory / "config.json").read_text())
    change(settings)
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 128}, r"is \[\d+, 64\], but config\.json makes it"),
        ({"intermediate_size": 64}, r"mlp\.\w+_proj\.weight is \[.*but config\.json makes it"),
        ({"vocab_size": 97}, r"embed_tokens\.weight is \[96, 64\], but config\.json makes it \[97, 64\]"),
        ({"num_hidden_layers": 5}, r"no tensor for model\.layers\.4\."),
        ({"num_hidden_layers": 3}, "that this family does not have, first 'model.layers.3"),
        ({"tie_word_embeddings": True, "attention_bias": True}, "no tensor for"),
        ({"num_attention_heads": 0}, "do not make a 'llama' model"),
        ({"hidden_size": "wide"}, "do not make a 'llama' model"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "do not make a 'llama' model"),
        ({"quantization": {"bits": 4}}, "do not make a 'llama' model"),
        ({"quantization": {"bits": 4, "group_size": 64}, "vocab_size": 95}, "is .* but config"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP3"}}, "Unsupported modelopt"),
        ({"model_type": "nonsense"}, "no architecture called 'nonsense'"),
        ({"model_type": "cache"}, "no architecture called 'cache'"),
        ({"model_type": "olmo"}, "needs a package that is not installed"),
    ],
)
def test_a_configuration_that_lies(change: dict[str, Any], says: str, tiny: Tiny, tmp_path: Path) -> None:
    directory = edited(tiny, tmp_path / "m", lambda settings: settings.update(change))
    with pytest.raises(BadData, match=says) as refused:
        parity.skeleton_of(directory)
    assert refused.value.exit == 65
    assert "\n" not in refused.value.message


def looked(directory: Path) -> bool:
    """Whether a changed model is accepted; anything but an answer fails the test, or ends the process."""
    try:
        parity.skeleton_of(directory)
    except ExoError:
        return False
    return True


WILD: tuple[Any, ...] = (
    *(-1, 0, 1, 7, 2**31 - 1, 2**31, 2**52, 1.5, 1e300, True, None),
    *("x", [], [1], {}, {"a": 1}),
)


@pytest.mark.parametrize("key", ["bits", "group_size", "mode"])
def test_wild_figures_of_a_quantization(key: str, tiny: Tiny, tmp_path: Path) -> None:
    """MLX divides by these: a zero would end the process."""
    directory = tmp_path / "m"
    shutil.copytree(tiny("llama", bits=4), directory)
    settings = json.loads((directory / "config.json").read_text())
    for path in (None, "model.layers.1.mlp.down_proj"):
        for value in WILD:
            changed = json.loads(json.dumps(settings))
            place = changed["quantization"] if path is None else changed["quantization"].setdefault(path, {})
            place[key] = value
            (directory / "config.json").write_text(json.dumps(changed))
            assert looked(directory) in (True, False)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["llama", "qwen3_next", "deepseek_v3", "gpt_oss", "nemotron_h"])
def test_wild_values_everywhere(family: str, tiny: Tiny, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(tiny(family, bits=4), directory)
    settings = json.loads((directory / "config.json").read_text())
    accepted = 0
    for key in (*settings, "rope_scaling", "layer_types"):
        for value in WILD:
            (directory / "config.json").write_text(json.dumps({**settings, key: value}))
            accepted += looked(directory)
    assert accepted


@pytest.mark.parametrize("name", ["weight", "scales", "biases"])
def test_wild_shapes_of_a_packed_tensor(name: str, tiny: Tiny, tmp_path: Path) -> None:
    source = ModelDirectory.open(tiny("llama", bits=4))
    directory = tmp_path / "m"
    shutil.copytree(source.path, directory)
    target = f"model.layers.1.mlp.down_proj.{name}"
    rows, columns = source.tensors[target].shape
    for shape in ([], [0], [rows, 0], [columns, rows], [rows, columns * 5], [rows, 1], [1, rows, columns]):
        write_header(directory / "model.safetensors", source, {target: ("U32", shape)})
        with pytest.raises(BadData, match=r"model\.layers\.1\.mlp\.down_proj"):
            parity.skeleton_of(directory)


def write_header(file: Path, source: ModelDirectory, changes: dict[str, tuple[str, list[int]]]) -> None:
    """A file with a correct header over tensors of other shapes, and a hole in place of their bytes."""
    header, at = {}, 0
    for info in source.tensors.values():
        dtype, shape = changes.get(info.name, (info.dtype, list(info.shape)))
        size = BITS[dtype] // 8
        for dimension in shape:
            size *= dimension
        header[info.name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + at)


@pytest.mark.parametrize("dtype", ["I32", "U32", "U8", "BOOL"])
def test_a_weight_of_whole_numbers_is_refused(dtype: str, tiny: Tiny, tmp_path: Path) -> None:
    source = ModelDirectory.open(tiny("llama"))
    directory = tmp_path / "m"
    shutil.copytree(source.path, directory)
    write_header(directory / "model.safetensors", source, {"model.norm.weight": (dtype, [64])})
    with pytest.raises(BadData, match=r"the tensor for model\.norm\.weight is of"):
        parity.skeleton_of(directory)


def test_a_missing_key_is_named(tiny: Tiny, tmp_path: Path) -> None:
    directory = edited(tiny, tmp_path / "m", lambda settings: settings.pop("hidden_size"))
    with pytest.raises(BadData, match="hidden_size"):
        parity.skeleton_of(directory)


def test_a_missing_tensor_is_named(tiny: Tiny, tmp_path: Path) -> None:
    source = ModelDirectory.open(tiny("llama"))
    weights = mx.load(str(source.path / "model.safetensors"))
    assert isinstance(weights, dict)
    del weights["model.layers.2.mlp.up_proj.weight"]
    tiny_models.save(weights, source.config, tmp_path / "m")
    with pytest.raises(BadData, match=r"no tensor for model\.layers\.2\.mlp\.up_proj\.weight"):
        parity.skeleton_of(tmp_path / "m")


def test_a_dtype_that_mlx_cannot_read(tiny: Tiny, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(tiny("llama"), directory)
    text = json.dumps({"x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (directory / "model-2.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(BadData, match=r"model-2\.safetensors: tensor 'x' is of F64"):
        parity.skeleton_of(directory)


def test_a_file_that_shrinks_between_looking_and_loading(tiny: Tiny, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(tiny("llama"), directory)
    skeleton = parity.skeleton_of(directory)
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(BadData, match=r"model\.safetensors|do not make"):
        loading.load_stage(skeleton, 3, 4)


def test_a_family_that_the_cpu_backend_cannot_run(tiny: Tiny) -> None:
    if mx.default_device() != mx.Device(mx.cpu, 0):
        pytest.skip("this machine has a GPU")
    skeleton = parity.skeleton_of(tiny("phi3small"))
    with pytest.raises(BadData, match="phi3small does not run on this machine's CPU"):
        loading.load_stage(skeleton, 0, 4)


def test_a_family_whose_kernels_this_machine_does_not_have(tiny: Tiny) -> None:
    if mx.metal.is_available():
        pytest.skip("this machine has Metal")
    with pytest.raises(BadData, match="bitnet runs on Macs alone"):
        parity.skeleton_of(tiny("bitnet"))


def test_odd_characters_in_the_path_do_not_matter(tiny: Tiny, tmp_path: Path) -> None:
    directory = tmp_path / "a [model] * of ümlauts"
    shutil.copytree(tiny("qwen3"), directory)
    loaded = loading.load_stage(parity.skeleton_of(directory), 0, 2)
    assert loaded.read_bytes > 0


def test_the_families_are_mlx_lms_modules() -> None:
    found = families.families()
    assert {"llama", "qwen3_next", "deepseek_v3", "gpt_oss"} <= set(found)
    assert not {"base", "cache", "switch_layers"} & set(found)
    assert len(found) > 100
