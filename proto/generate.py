"""Generate exo_cli/wire/exo_pb2*.py from the .proto; `--check` says whether they are up to date.

Knows nothing of what the messages mean. The stubs are generated with the locked grpcio-tools.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto" / "exo_cli" / "wire" / "exo.proto"
TARGET = ROOT / "exo_cli" / "wire"
NAMES = ("exo_pb2.py", "exo_pb2.pyi", "exo_pb2_grpc.py")


def generate(into: Path) -> None:
    """Write the three modules below `into`."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT / 'proto'}",
            f"--python_out={into}",
            f"--pyi_out={into}",
            f"--grpc_python_out={into}",
            str(SOURCE),
        ],
        check=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = []
        for name in NAMES:
            fresh = (Path(scratch) / "exo_cli" / "wire" / name).read_text(encoding="utf-8")
            fresh = re.sub(r"[ \t]+$", "", fresh, flags=re.MULTILINE)
            target = TARGET / name
            if not target.exists() or target.read_text(encoding="utf-8") != fresh:
                stale.append(name)
                if not check:
                    target.write_text(fresh, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python proto/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
