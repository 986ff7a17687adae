"""Every family of mlx-lm, at every cut it allows: exact, refused or unsupported, and none wrong.

What was found is in build/sweep afterwards, a line for each family and format: `cat build/sweep/*`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.engine import families, loading
from exo_cli.errors import BadData
from tests.support import parity, tiny_models

pytestmark = pytest.mark.nightly

UNSUPPORTED = {
    "bitnet": "runs on Macs alone",
    "muse_spark": "runs on Macs alone",
    "olmo": "needs a package that is not installed",
    "phi3small": "does not run on this machine's CPU",
    "prism_hadamard_qwen35": "Unsupported Hadamard pack",
}
"""What cannot be run here, with what is said; everything else has to run."""
SINGLE_STAGE = {"dbrx", "iquestloopcoder", "kimi_k3", "phixtral"}
SOME_CUTS = {"afm7", "gemma3n", "gemma4", "gemma4_text"}
NOT_QUANTIZED = {"afm7": "mlx-lm cannot quantize it"}
FORMATS = {"float32": None, "4bit": 4}


@dataclass
class Finding:
    """A line of the table; a case that ends without another word is wrong."""

    outcome: str = "wrong"
    exact: list[tuple[int, ...]] = field(default_factory=list)
    """The cuts that gave the unsplit model's numbers, bit for bit."""
    refused: list[int] = field(default_factory=list)
    why: str = ""

    def line(self, *key: str) -> str:
        cuts = f"exact at {self.exact}, refused at {self.refused}"
        return "\t".join((*key, self.outcome, self.why or cuts)) + "\n"


@pytest.fixture
def finding(request: pytest.FixtureRequest) -> Iterator[Finding]:
    """Written where the next run writes it again."""
    name = request.node.callspec.id
    table = request.config.rootpath / "build" / "sweep"
    table.mkdir(parents=True, exist_ok=True)
    found = Finding()
    yield found
    (table / name).write_text(found.line(*name.rsplit("-", 1)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", families.families())
def test_family(family: str, form: str, tmp_path: Path, finding: Finding) -> None:
    mx.disable_compile()
    if family in UNSUPPORTED or (form != "float32" and family in NOT_QUANTIZED):
        finding.outcome = "unsupported"
        finding.why = NOT_QUANTIZED.get(family) or UNSUPPORTED[family]
        return
    directory = tiny_models.build(family, tmp_path / "model", bits=FORMATS[form])
    skeleton = parity.skeleton_of(directory)
    anatomy = skeleton.anatomy
    expected = parity.unsplit(directory)
    chains = [(), *((cut,) for cut in anatomy.allowed), anatomy.allowed]
    for cuts in dict.fromkeys(chains):
        assert parity.differences(expected, parity.chain(skeleton, cuts)) is None, cuts
        finding.exact.append(cuts)
    finding.refused = [cut.at for cut in anatomy.cuts if not cut.allowed]
    for at in finding.refused:
        with pytest.raises(BadData, match=f"before layer {at}: "):
            loading.load_stage(skeleton, 0, at)
    if family in SINGLE_STAGE:
        assert not anatomy.allowed
    elif family in SOME_CUTS:
        assert anatomy.allowed
        assert finding.refused
    else:
        assert not finding.refused
    finding.outcome = "exact" if anatomy.allowed else "refused"


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_unsupported(family: str, tmp_path: Path) -> None:
    """Refused by us or by mlx-lm, with a reason; never a wrong answer. phi3small is not run: it crashes."""
    mx.disable_compile()

    def run() -> None:
        parity.chain(parity.skeleton_of(tiny_models.build(family, tmp_path / "model")), ())

    with pytest.raises((BadData, RuntimeError, ValueError, SystemExit)) as error:
        run()
    assert UNSUPPORTED[family] in str(error.value) or family == "olmo"
