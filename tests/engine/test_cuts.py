"""Which cuts a model allows: made-up models with one difficulty each, and the families that have them."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache

from exo_cli.engine.cuts import Anatomy, survey
from exo_cli.errors import BadData
from tests.support import parity
from tests.support.tiny_models import Tiny


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def __call__(self, x: mx.array, cache: Any, *more: Any) -> Any:
        keys, _ = cache.update_and_fetch(x[:, None], x[:, None])
        return self.linear(x) + keys.sum(axis=(1, 2))[:, None]


class Toy(nn.Module):  # type: ignore[misc]
    """Four layers of which subclasses change one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = [Block() for _ in range(4)]
        self.unused = nn.Linear(4, 4)

    def __call__(self, tokens: mx.array, cache: Any) -> Any:
        x = self.embed(tokens)
        for layer, its in zip(self.layers, cache, strict=True):
            x = layer(x, its)
        return self.embed.as_linear(x)


def look(model: nn.Module, **config: Any) -> Anatomy:
    return survey(model, model_type="toy", config=config)


def reasons(model: nn.Module) -> list[str | None]:
    return [cut.reason for cut in look(model).cuts]


def test_a_plain_model_may_be_cut_anywhere() -> None:
    anatomy = look(Toy())
    assert anatomy.allowed == (1, 2, 3)
    assert anatomy.caches_of == ((0,), (1,), (2,), (3,))
    assert anatomy.layer_paths == ("layers.0", "layers.1", "layers.2", "layers.3")
    assert anatomy.payload_at(2).width == 4


def test_a_stage_needs_its_layers_and_what_it_is_made_from() -> None:
    anatomy = look(Toy())
    layer = {f"layers.1.linear.{part}" for part in ("weight", "bias")}
    assert anatomy.stage_weights(1, 2) == layer
    assert "embed.weight" in anatomy.stage_weights(0, 1)
    assert "embed.weight" in anatomy.stage_weights(3, 4)  # tied
    assert "unused.weight" not in anatomy.stage_weights(3, 4)
    assert "unused.weight" in anatomy.stage_weights(0, 4)


def test_a_layer_that_reads_an_earlier_output() -> None:
    class Skips(Toy):
        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x = first = self.layers[0](self.embed(tokens), cache[0])
            x = self.layers[1](x, cache[1])
            x = self.layers[2](x + first, cache[2])
            return self.layers[3](x, cache[3])

    assert reasons(Skips()) == [None, "a later layer reads the output of layer 0", None]


def test_something_carried_beside_the_layers_in_an_attribute() -> None:
    class Stashes(Block):
        def __call__(self, x: mx.array, cache: Any, *more: Any) -> Any:
            holder = more[0]
            holder.append(self.linear(x) * 2)
            return super().__call__(x, cache)

    class Carries(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.layers[1] = Stashes()

        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x, holder = self.embed(tokens), _Holder()
            for number, (layer, its) in enumerate(zip(self.layers, cache, strict=True)):
                x = layer(x, its, holder)
                if number == 2:
                    x = x + holder.items[0]
            return x

    inside = "a later layer reads what layer 1 computes inside"
    assert reasons(Carries()) == [None, inside, inside]


class _Holder:
    def __init__(self) -> None:
        self.items: list[mx.array] = []

    def append(self, array: mx.array) -> None:
        self.items.append(array)


def test_a_cache_that_a_later_layer_reads() -> None:
    class Reads(Toy):
        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x = self.embed(tokens)
            for layer, its in zip(self.layers, cache, strict=True):
                x = layer(x, its)
            return x + cache[1].keys[..., :1, :].sum(axis=1)

    found = reasons(Reads())
    assert found[0] is None
    assert all(reason is not None for reason in found[1:])


def test_a_cache_that_two_layers_share() -> None:
    class Shares(Toy):
        def make_cache(self) -> list[KVCache]:
            return [KVCache() for _ in range(3)]

        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x = self.embed(tokens)
            for layer, its in zip(self.layers, (0, 1, 2, 1), strict=True):
                x = layer(x, cache[its])
            return x

    shared = "layers on both sides keep their keys and values in one cache"
    assert reasons(Shares()) == [None, shared, shared]


@pytest.mark.parametrize(
    ("order", "n"), [((0, 1, 2, 3, 3), 4), ((0, 2, 1, 3), 4), ((0, 1, 2), 4), ((0, 1, 2, 3, 0, 1, 2, 3), 4)]
)
def test_layers_that_do_not_run_once_each_in_order(order: tuple[int, ...], n: int) -> None:
    class Loops(Toy):
        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x = self.embed(tokens)
            for layer in order:
                x = self.layers[layer](x, cache[layer])
            return x

    model = Loops()
    anatomy = look(model)
    assert anatomy.allowed == ()
    assert {cut.reason for cut in anatomy.cuts} == {"its layers do not run once each, in their order"}
    with pytest.raises(BadData, match="toy cannot be cut before layer 2") as refused:
        anatomy.check_range(0, 2)
    assert refused.value.hint == "Run this model in one stage."
    anatomy.check_range(0, n)


def with_output(change: Callable[[mx.array], Any], read: Callable[[Any], mx.array]) -> nn.Module:
    class Gives(Block):
        def __call__(self, x: Any, cache: Any, *more: Any) -> Any:
            return change(super().__call__(read(x), cache))

    class Other(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Gives() for _ in range(4)]

        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x: Any = change(self.embed(tokens))
            for layer, its in zip(self.layers, cache, strict=True):
                x = layer(x, its)
            return read(x)

    return Other()


def test_an_output_of_several_tensors_is_sent_whole() -> None:
    model = with_output(lambda x: (x, {"twice": x * 2}), lambda x: x[0] + x[1]["twice"])
    payload = look(model).payload_at(1)
    assert payload.width == 8
    assert len(payload.sent) == 2


def test_an_output_that_nobody_reads_stays() -> None:
    model = with_output(lambda x: (x, x.sum()), lambda x: x[0])
    payload = look(model).payload_at(1)
    assert payload.slots[1] is None
    assert payload.width == 4


@pytest.mark.parametrize(
    ("change", "read", "reason"),
    [
        (lambda x: (x, x.sum()), lambda x: x[0] + x[1], "one row for each token"),
        (lambda x: (x, (x > 0).astype(mx.int32)), lambda x: x[0] + x[1], "does not hold fractions"),
        (lambda x: (x, object()), lambda x: x[0], "not of one form|no tensor"),
        (lambda x: (x, x.shape[1]), lambda x: x[0], "not of one form"),
    ],
)
def test_outputs_that_cannot_be_sent(change: Any, read: Any, reason: str) -> None:
    found = {cut.reason for cut in look(with_output(change, read)).cuts}
    assert all(each is not None for each in found)
    with pytest.raises(BadData, match=reason):
        look(with_output(change, read)).check_range(1, 4)


def test_something_that_happens_only_beyond_a_threshold() -> None:
    class Sparse(Toy):
        def __call__(self, tokens: mx.array, cache: Any) -> Any:
            x = first = self.layers[0](self.embed(tokens), cache[0])
            for layer, its in zip(self.layers[1:], cache[1:], strict=True):
                x = layer(x + (first if tokens.shape[1] > 40 else 0), its)
            return x

    assert look(Sparse()).allowed == (1, 2, 3)
    assert look(Sparse(), index_topk=40).allowed == (1,)


def test_nothing_is_computed() -> None:
    class Refuses(Block):
        def __call__(self, x: mx.array, cache: Any, *more: Any) -> Any:
            big = mx.zeros((2**30, 2**9)) + x.sum()  # two terabytes if anybody computed it
            return super().__call__(x, cache) + big[0, 0]

    model = Toy()
    model.layers[0] = Refuses()
    assert look(model).allowed == (1, 2, 3)


def test_ranges_that_make_no_sense() -> None:
    anatomy = look(Toy())
    for first, last in [(0, 5), (-1, 2), (2, 2), (3, 1)]:
        with pytest.raises(BadData, match="of a model that has 4"):
            anatomy.check_range(first, last)


def test_the_model_is_as_it_was_after_a_look() -> None:
    model = Toy()
    look(model)
    assert {type(layer) for layer in model.layers} == {Block}


@pytest.mark.parametrize(
    ("family", "allowed"),
    [
        ("afm7", (1,)),
        ("gemma4_text", (1, 2)),
        ("gemma3n", (1, 2)),
        ("iquestloopcoder", ()),
        ("kimi_k3", ()),
        ("dbrx", ()),
        ("phixtral", ()),
    ],
)
def test_families_that_do_not_allow_every_cut(family: str, allowed: tuple[int, ...], tiny: Tiny) -> None:
    anatomy = parity.skeleton_of(tiny(family)).anatomy
    assert anatomy.allowed == allowed
    refused = next(cut for cut in anatomy.cuts if not cut.allowed)
    with pytest.raises(BadData, match=f"{family} cannot be cut before layer {refused.at}: ") as error:
        anatomy.check_range(0, refused.at)
    assert error.value.exit == 65
    assert error.value.hint


def test_a_model_of_more_weights_than_one_call_can_name(tiny: Tiny) -> None:
    directory = tiny("qwen3_moe", overrides=(("num_hidden_layers", 110),))
    anatomy = parity.skeleton_of(directory).anatomy
    assert len(anatomy.weights) > 1024
    assert anatomy.allowed == tuple(range(1, 110))
