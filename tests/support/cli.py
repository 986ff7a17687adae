"""`exo` as a process of its own, the way a shell starts it."""

import subprocess
import sys
from typing import Any

EXO = (sys.executable, "-m", "exo_cli")


def exo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end."""
    options.setdefault("capture_output", not {"stdout", "stderr"} & set(options))
    return subprocess.run([*EXO, *arguments], text=True, timeout=60, check=False, **options)
