"""Every family of mlx-lm, at every cut it allows: exact, refused or unsupported, and none wrong."""

from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.engine import loading
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


@pytest.mark.parametrize("bits", [None, 4], ids=["float32", "4bit"])
@pytest.mark.parametrize("family", loading.families())
def test_family(family: str, bits: int | None, tmp_path: Path) -> None:
    mx.disable_compile()
    if family in UNSUPPORTED:
        pytest.skip(UNSUPPORTED[family])
    if bits is not None and family in NOT_QUANTIZED:
        pytest.skip(NOT_QUANTIZED[family])
    directory = tiny_models.build(family, tmp_path / "model", bits=bits)
    skeleton = parity.skeleton_of(directory)
    anatomy = skeleton.anatomy
    expected = parity.unsplit(directory)
    chains = [(), *((cut,) for cut in anatomy.allowed), anatomy.allowed]
    for cuts in dict.fromkeys(chains):
        assert parity.differences(expected, parity.chain(skeleton, cuts)) is None, cuts
    refused = {cut.at for cut in anatomy.cuts if not cut.allowed}
    for at in refused:
        with pytest.raises(BadData, match=f"before layer {at}: "):
            loading.load_stage(skeleton, 0, at)
    if family in SINGLE_STAGE:
        assert not anatomy.allowed
    elif family in SOME_CUTS:
        assert anatomy.allowed
        assert refused
    else:
        assert not refused


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_unsupported(family: str, tmp_path: Path) -> None:
    """Refused by us or by mlx-lm, with a reason; never a wrong answer. phi3small is not run: it crashes."""
    mx.disable_compile()

    def run() -> None:
        parity.chain(parity.skeleton_of(tiny_models.build(family, tmp_path / "model")), ())

    with pytest.raises((BadData, RuntimeError, ValueError, SystemExit)) as error:
        run()
    assert UNSUPPORTED[family] in str(error.value) or family == "olmo"
