"""The name of a model that any machine can compute alike: its digest.

sha256 over a version line, the sha256 of config.json as it stands, and the sha256 of every
safetensors header (the eight length bytes and the JSON), sorted. So the files' names, their order and
where they lie do not matter; a byte of config.json, a tensor's name, dtype, shape or place in its
file, and how tensors are spread over files do. The weights' own bytes are not read: two fine-tunes
with equal config.json and equal headers have the same digest, and a bit that flipped in a weight does
not show; that is for the checksums with which files are fetched. Knows nothing of directories.
"""

import hashlib
from collections.abc import Iterable

_VERSION = b"exo.model/1\n"


def model_digest(config: bytes, header_hashes: Iterable[bytes]) -> str:
    """`config` is config.json as it stands; each hash is a `safetensors.Header.sha256`."""
    total = hashlib.sha256(_VERSION)
    total.update(hashlib.sha256(config).digest())
    for header in sorted(header_hashes):
        total.update(header)
    return total.hexdigest()
