from pathlib import Path

import pytest

from exo_cli.errors import BadData
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.models.directory import ModelDirectory
from tests.support.weights import CONFIG, tensor_names, write_model

LAYERS = 4


def needed(
    path: Path, first: int, last: int, names: list[str] | None = None, layers: int = LAYERS, **config: object
) -> set[str]:
    """The tensors that the ranges hold; a tensor in part is a mistake."""
    model = write_model(path / "model", names=names or tensor_names(LAYERS), config={**CONFIG, **config})
    directory = ModelDirectory.open(model)
    spans = stage_ranges(directory, first, last, layers)
    held = set()
    for tensor in directory.tensors.values():
        inside = [
            span for span in spans if span.path == tensor.file and span.start < tensor.end > tensor.start
        ]
        overlapping = [span for span in inside if span.end > tensor.start]
        if overlapping:
            assert len(overlapping) == 1
            assert overlapping[0].start <= tensor.start
            assert overlapping[0].end >= tensor.end
            held.add(tensor.name)
    assert sum(span.size for span in spans) == sum(directory.tensors[name].nbytes for name in held)
    return held


def layer(number: int, prefix: str = "model.") -> set[str]:
    return {f"{prefix}layers.{number}.{part}.weight" for part in ("attn", "mlp")}


def test_a_plain_model(tmp_path: Path) -> None:
    norm = {"model.norm.weight"}
    assert needed(tmp_path, 0, 2) == {"model.embed_tokens.weight"} | layer(0) | layer(1) | norm
    assert needed(tmp_path, 1, 3) == layer(1) | layer(2) | norm
    assert needed(tmp_path, 2, 4) == layer(2) | layer(3) | norm | {"lm_head.weight"}
    assert needed(tmp_path, 0, 4) == set(tensor_names(LAYERS))


def test_a_tied_head_needs_the_embedding(tmp_path: Path) -> None:
    for config in ({"tie_word_embeddings": True}, {"tie_word_embeddings": None}):
        assert "model.embed_tokens.weight" in needed(tmp_path, 2, 4, **config)
        assert "model.embed_tokens.weight" not in needed(tmp_path, 1, 3, **config)
    without_head = [name for name in tensor_names(LAYERS) if "lm_head" not in name]
    assert "model.embed_tokens.weight" in needed(tmp_path, 2, 4, without_head)


def test_every_part_of_a_quantized_layer_goes_along(tmp_path: Path) -> None:
    names = [
        f"{stem}.{part}"
        for stem in ("model.embed_tokens", "model.layers.0.a", "model.layers.1.a", "lm_head")
        for part in ("weight", "scales", "biases")
    ]
    found = needed(tmp_path, 0, 1, names, layers=2)
    assert found == {name for name in names if "lm_head" not in name and "layers.1" not in name}


def test_numbers_inside_a_layer_are_not_layers(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.mlp.experts.{e}.w" for n in range(4) for e in range(8)]
    assert needed(tmp_path, 1, 2, names) == {name for name in names if name.startswith("model.layers.1.")}


def test_a_tower_beside_the_layers_goes_everywhere(tmp_path: Path) -> None:
    names = [f"vision_tower.layers.{n}.w" for n in range(6)]
    names += [name for n in range(4) for name in layer(n, "language_model.model.")]
    names += ["language_model.model.embed_tokens.weight", "vision_tower.embed_tokens.weight"]
    found = needed(tmp_path, 1, 2, names, layers=4)
    assert layer(1, "language_model.model.") <= found
    # Of two stacks that could be the layers, neither may be cut short; the larger one is taken.
    assert not layer(2, "language_model.model.") & found
    assert {name for name in names if name.startswith("vision_tower.")} <= found
    assert "language_model.model.embed_tokens.weight" not in found


def test_layers_beyond_the_last_go_to_the_last_stage(tmp_path: Path) -> None:
    names = tensor_names(5)
    assert layer(4) <= needed(tmp_path, 2, 4, names, layers=4)
    assert not layer(4) & needed(tmp_path, 0, 2, names, layers=4)


@pytest.mark.parametrize(
    "names",
    [
        ["a.weight", "b.weight"],
        [f"model.first.{n}.w" for n in range(2)] + [f"model.second.{n}.w" for n in range(2)],
        [f"model.layers.{n}.w" for n in range(1, 4)],
        [f"model.layers_{n}.w" for n in range(4)],
    ],
)
def test_what_is_not_understood_goes_whole(tmp_path: Path, names: list[str]) -> None:
    for first, last in ((0, 2), (2, 4)):
        assert needed(tmp_path, first, last, names) == set(names)


def test_layers_that_the_model_does_not_have(tmp_path: Path) -> None:
    for first, last in ((0, 5), (2, 2), (3, 1), (-1, 2)):
        with pytest.raises(BadData):
            needed(tmp_path, first, last)
