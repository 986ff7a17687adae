import importlib
import re
from typing import Any

import mlx_lm.utils
import pytest

from exo_cli.models import catalogue
from exo_cli.models.catalogue import Figure, Row, rows
from exo_cli.models.families import FAMILIES
from exo_cli.models.geometry import Format, Geometry

ROWS = [pytest.param(row, id=row.name) for row in rows()]
# fmt: off
EXPECTED = {
    "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.3-70b",
    "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b",
    "qwen3-235b-a22b", "qwen3-next-80b-a3b", "qwen3-coder-480b-a35b", "deepseek-v3", "deepseek-v3.1",
    "deepseek-r1", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b",
    "gemma-3-27b", "glm-4.5", "glm-4.5-air", "glm-4.6", "mistral-7b", "mistral-small-24b",
    "mistral-large-123b", "mixtral-8x7b", "mixtral-8x22b",
}
# fmt: on


def counted(found: Geometry, figure: Figure, *, active: bool) -> int:
    """The geometry by the publisher's rule."""
    layers = [weight for layer in found.layers for weight in layer.weights.values()]
    layers += [weight for name, weight in found.ends.items() if "head" not in name]
    parts = {
        "layers": sum(weight.active_items if active else weight.items for weight in layers),
        "embedding": found.embedding_parameters,
        "head": found.head_parameters or found.embedding_parameters,
        "further": found.further_active_parameters if active else found.further_parameters,
    }
    return sum(parts[part] for part in figure.counts)


@pytest.mark.parametrize("row", ROWS)
def test_published_figures_follow_from_the_geometry(row: Row) -> None:
    for figure, active in ((row.total, False), (row.active, True)):
        if figure is None:
            continue
        off = abs(counted(row.geometry, figure, active=active) - figure.figure)
        # A rounded figure stands for all that rounds to it.
        rounding = figure.precision / 2 if figure.precision > 1 else 0
        assert off <= rounding + 0.005 * figure.figure, (figure, off)
        assert not figure.checked or off <= 0.005 * figure.figure, (figure, off)
        assert figure.checked == (rounding <= 0.005 * figure.figure)


def test_most_totals_are_exact_to_the_parameter() -> None:
    exact = [row.name for row in rows() if counted(row.geometry, row.total, active=False) == row.total.figure]
    rounded = {row.name for row in rows() if row.total.precision > 1}
    # The hub gives Kimi K2 3,416 parameters more than its config.json does.
    assert set(exact) == {row.name for row in rows()} - rounded - {"kimi-k2"}
    assert len(exact) >= 35


@pytest.mark.parametrize("row", ROWS)
def test_mlx_lm_takes_the_configuration(row: Row) -> None:
    """Without building the model: only that nothing it wants is missing."""
    family = row.config["model_type"]
    module = importlib.import_module(f"mlx_lm.models.{mlx_lm.utils.MODEL_REMAPPING.get(family, family)}")
    args = module.ModelArgs.from_dict({**row.config, "text_config": dict(row.config.get("text_config", {}))})
    assert args is not None
    inner: Any = getattr(args, "text_config", None) or row.config
    assert inner["num_hidden_layers"] == len(row.geometry.layers)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_where_it_is_from(row: Row) -> None:
    assert row.config["model_type"] in FAMILIES
    assert re.fullmatch(r"mlx-community/[A-Za-z0-9.-]+", row.repository)
    assert row.config_source == f"https://huggingface.co/{row.base}/blob/main/config.json"
    assert row.read_from
    assert all(figure.source.startswith("https://") for figure in (row.total, row.active) if figure)
    used = row.geometry.total_parameters - row.geometry.active_parameters
    assert (row.active is not None) == (used > row.geometry.embedding_parameters)


def test_what_is_there() -> None:
    names = [row.name for row in rows()]
    assert set(names) >= EXPECTED
    everything = catalogue.names()
    assert len(set(everything)) == len(everything)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) for name in everything)
    assert everything[0] == "pocket"


def test_what_nobody_could_check_is_marked() -> None:
    assert {row.name for row in rows() if not row.config_checked} == {"deepseek-v3.1", "deepseek-r1"}
    loose = {row.name for row in rows() if row.active and not row.active.checked}
    assert {"qwen3-next-80b-a3b", "kimi-k2"} <= loose
    assert loose.isdisjoint({"gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "mixtral-8x7b"})
    assert all(row.total.checked for row in rows())


def test_names_and_those_like_them() -> None:
    row = catalogue.find("Llama-3.2-1B")
    assert row is not None
    assert row.repository == "mlx-community/Llama-3.2-1B-Instruct-4bit"
    assert catalogue.find("qwen3-30b") == catalogue.find("QWEN3-30B-A3B")
    assert catalogue.find("pocket") is None
    assert catalogue.find("llama") is None
    assert catalogue.near("lama-3.2-1b")[0] == "llama-3.2-1b"
    assert "pocket" in catalogue.near("poket")
    assert catalogue.near("zzzzzz") == []


def test_sizes_that_people_know() -> None:
    """Downloads of these repositories, to a per cent: 4 bits and half a bit of scales."""
    for name, gigabytes in (("llama-3.2-1b", 0.695), ("llama-3.3-70b", 39.7), ("deepseek-v3", 378)):
        row = catalogue.find(name)
        assert row is not None
        assert row.geometry.weight_bytes(Format(4, 64)) == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_cache_sizes_that_people_know() -> None:
    for name, per_token in (("llama-3.1-8b", 131_072), ("deepseek-v3", 70_272), ("llama-3.1-70b", 327_680)):
        row = catalogue.find(name)
        assert row is not None
        assert row.geometry.cache_bytes_per_token() == per_token
    gemma = catalogue.find("gemma-3-27b")
    assert gemma is not None
    whole = gemma.geometry.cache_bytes_per_token() * 131_072
    assert gemma.geometry.cache_bytes(131_072) < whole / 5
