from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab, why_not

_REASON = why_not()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if _REASON is not None:
        pytest.skip(_REASON)
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.close()
