"""A throw-away process that says what the engine runs on this machine, a line of JSON at a time.

Run as `python -m exo_cli.engine.abilities`, with the names of formats to leave out. What is tried is said
before its outcome, so that a trial that ends the process names itself. Knows nothing of nodes.
"""

import json
import os
import sys
import threading
from collections.abc import Container, Iterator

import mlx.core as mx

from exo_cli.engine import families, formats


def report(known: Container[str] = ()) -> Iterator[dict[str, str | None]]:
    """Families that do not run, then the formats one after the other."""
    for family, why in sorted(families.refused_families().items()):
        yield {"family": family, "trouble": why}
    for name in formats.known():
        if name in known:
            continue
        yield {"trying": name}
        trouble = formats.trouble(name)
        if trouble is not None and name.removesuffix(formats.EXPERTS) in formats.DENSE:
            trouble += " (exact loads them as float32, twice as large)"
        yield {"format": name, "trouble": trouble}


def main() -> None:
    """Every line is out before the next trial begins; with its input the process ends, whatever it does."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    mx.disable_compile()
    for line in report(sys.argv[1:]):
        os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
