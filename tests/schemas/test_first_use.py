"""Types that several threads use for the first time at once, and the rule that says how."""

import re
import subprocess
import sys
from pathlib import Path

import exo_cli

ROOT = Path(exo_cli.__file__).parent
MANY = """
import sys, threading, msgspec
from exo_cli.schemas.first_use import shared
sys.setswitchinterval(1e-6)
for turn in range(30):
    inner = msgspec.defstruct("Inner", [("n", int), ("of", list[tuple[int, int]])])
    middle = msgspec.defstruct("Middle", [("x", str), ("inner", list[inner])])
    outer = msgspec.defstruct("Outer", [("a", str), ("b", list[middle]), ("c", int)])
    data = b'{"a":"x","b":[{"x":"y","inner":[{"n":1,"of":[[1,2]]}]}],"c":2}'
    go = threading.Event()
    found = []
    def use():
        go.wait()
        found.append(msgspec.json.decode(data, type=shared(outer)).b[0].inner[0].of)
    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads: thread.start()
    go.set()
    for thread in threads: thread.join()
    assert found == [[(1, 2)]] * 6, found
"""


def test_threads_that_come_at_once_all_decode() -> None:
    """Without it seven of eight such processes were ended by SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_whoever_decodes_says_so() -> None:
    for path in ROOT.rglob("*.py"):
        for call in re.findall(r"json\.decode\(.*type=[^)]*\)*", path.read_text(encoding="utf-8")):
            assert "type=shared(" in call, f"{path.name}: {call}"
