"""Mutual TLS by the standard library, for connections that are not gRPC's: the same leaves, the same rules.

Knows nothing of sockets nor of what is said over them.
"""

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from exo_cli.trust.authority import Leaf


def client_context(leaf: Leaf) -> ssl.SSLContext:
    """For whoever connects; it asks for the certificate of its own cluster by `leaf.name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _prepare(context, [leaf], leaf)
    return context


def server_context(leaves: Sequence[Leaf]) -> ssl.SSLContext:
    """For whoever is connected to: shows the leaf that is asked for by name, accepts those of all of them."""
    contexts = {}
    for leaf in leaves:
        contexts[leaf.name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _prepare(contexts[leaf.name], leaves, leaf)
        contexts[leaf.name].verify_mode = ssl.CERT_REQUIRED
    first = contexts[leaves[0].name]

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = contexts.get(name or "", first)

    first.sni_callback = choose
    return first


def _prepare(context: ssl.SSLContext, trusted: Sequence[Leaf], shown: Leaf) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=b"".join(each.authority_pem for each in trusted).decode())
    # The library reads keys from files only: a pipe's end has a name like one and leaves nothing on a disk.
    with _readable(shown.certificate_pem) as certificate, _readable(shown.key_pem) as key:
        context.load_cert_chain(certificate, key)


@contextmanager
def _readable(data: bytes) -> Iterator[str]:
    """The name of a file with this in it, for as long as it takes; it fits into a pipe."""
    out, into = os.pipe()
    try:
        os.write(into, data)
        os.close(into)
        yield f"/dev/fd/{out}"
    finally:
        os.close(out)
