"""Which files of a model travel between machines, and which names a peer may give them.

Weights, configuration and tokenizer, all beside each other in one directory. Everything else stays
where it is: programs that some models bring along are neither sent nor taken. Knows no file system.
"""

import re
from collections.abc import Iterable
from typing import Final

from exo_cli.errors import BadData
from exo_cli.models.directory import MAX_CONFIG_BYTES, MAX_FILES, TOKENIZER_FILES
from exo_cli.models.safetensors import shown

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SMALL_FILES: Final = (CONFIG, INDEX, "hf_quant_config.json", *TOKENIZER_FILES)
"""Sent whole; the digest of a model covers config.json alone of them."""
MAX_SMALL_BYTES: Final = 64 * 1024 * 1024
MAX_FILE_BYTES: Final = 1 << 50

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# No separator, no leading dot, nothing that a shell or a file system reads in a way of its own.
_WEIGHTS: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,242}\.safetensors")


def is_small(name: str) -> bool:
    return name in SMALL_FILES


def is_weights(name: str) -> bool:
    return _WEIGHTS.fullmatch(name) is not None and ".." not in name


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_listing(files: Iterable[tuple[str, int]], who: str) -> dict[str, int]:
    """Name to size of a model's files, as `who` lists them; refused if any of it is not as it must be."""
    found: dict[str, int] = {}
    folded: set[str] = set()
    for name, size in files:
        if not (is_small(name) or is_weights(name)):
            raise BadData(f"{who} offers a file called {shown(name)}, which is no file of a model")
        if name.casefold() in folded:
            raise BadData(f"{who} offers {shown(name)} twice")
        folded.add(name.casefold())
        limit = MAX_FILE_BYTES
        if is_small(name):
            limit = MAX_CONFIG_BYTES if name == CONFIG else MAX_SMALL_BYTES
        if not 0 < size <= limit:
            raise BadData(f"{who} says that {name} has {size} bytes")
        found[name] = size
        if len(found) > MAX_FILES:
            raise BadData(f"{who} offers more than {MAX_FILES} files")
    if CONFIG not in found or not any(map(is_weights, found)):
        raise BadData(f"{who} offers a model without config.json or without weights")
    return found
