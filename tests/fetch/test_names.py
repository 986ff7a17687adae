import pytest

from exo_cli.errors import BadData
from exo_cli.fetch.names import MAX_FILE_BYTES, MAX_SMALL_BYTES, check_listing, is_digest, is_weights

GOOD = [("config.json", 10), ("model.safetensors", 100)]


def test_a_usual_listing() -> None:
    more = [*GOOD, ("tokenizer.json", 5), ("chat_template.jinja", 5), ("generation_config.json", 5)]
    assert check_listing(more, "peer") == dict(more)


@pytest.mark.parametrize(
    "name",
    [
        *("../config.json", "..", ".", "", "/etc/passwd", "a/model.safetensors", "a\\model.safetensors"),
        *(
            "..safetensors",
            "a..safetensors",
            ".model.safetensors",
            "model.safetensors\0",
            "model.safetensors\n",
        ),
        *(
            "modeling_llama.py",
            "conftest.py",
            "pytorch_model.bin",
            "index.json",
            ".exo-map.json",
            ".exo-lock",
        ),
        *("Tokenizer.json", "model.SAFETENSORS", "mödel.safetensors", "C:model.safetensors", " .safetensors"),
        *("~.safetensors", "-rf.safetensors", "x" * 300 + ".safetensors", "tokenizer.json/"),
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadData) as caught:
        check_listing([*GOOD, (name, 5)], "peer")
    assert "peer" in caught.value.message
    assert "\0" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "listing",
    [
        [*GOOD, ("MODEL.safetensors", 5)],  # one file on some disks
        [*GOOD, GOOD[1]],
        [("config.json", 0), GOOD[1]],
        [("config.json", 5 * 2**20), GOOD[1]],
        [*GOOD, ("tokenizer.json", MAX_SMALL_BYTES + 1)],
        [GOOD[0], ("model.safetensors", MAX_FILE_BYTES + 1)],
        [GOOD[0]],
        [GOOD[1]],
        [],
        [GOOD[0], *((f"model-{n}.safetensors", 9) for n in range(5000))],
    ],
)
def test_listings_that_are_refused(listing: list[tuple[str, int]]) -> None:
    with pytest.raises(BadData):
        check_listing(listing, "peer")


def test_weights_and_digests() -> None:
    assert is_weights("model-00001-of-00002.safetensors")
    assert is_digest("ab" * 32)
    assert not any(map(is_digest, ("", "AB" * 32, "a" * 63, "a" * 64 + "\n", "../" + "a" * 61)))
