"""Every capture is diagnosed as those expect who wrote it: first cause, remedy, cables, exit code."""

from itertools import pairwise

import pytest

from exo_cli.errors import BadData
from exo_cli.rdma.capture import read
from exo_cli.rdma.diagnose import diagnose
from exo_cli.rdma.words import KINDS
from exo_cli.schemas.doctor import RdmaCheck
from tests.support.captures import ALL, CAPTURES, READABLE, expected, steps, troubles

LEVELS = ["failure", "warning", "info", "ok"]


def check(name: str) -> RdmaCheck:
    return diagnose(read(CAPTURES / name))


def test_there_is_a_capture_for_every_failure_mode() -> None:
    causes = {expected(name)["first_cause"] for name in ALL}
    assert {
        *("thunderbolt-4", "rdma-disabled", "no-device", "port-down", "no-ipv4-gid", "bridge-active"),
        *("os-builds-differ", "cable-missing", "two-cables", "drive-not-mac", "hub-between", "os-too-old"),
        *("fast-synch-set", "queue-pairs-exhausted", "no-rdma-device", "rdma-port-down", "memlock-low"),
    } <= causes


@pytest.mark.parametrize("name", READABLE)
def test_the_first_cause_and_its_remedy(name: str) -> None:
    wanted, found = expected(name), check(name)
    first = next(iter(troubles(found)), None)
    assert (first.id if first else None) == wanted["first_cause"]
    assert found.would_work is (wanted["exit"] == 0)
    if first is None:
        return
    assert first.level == wanted["level"]
    assert set(wanted.get("nodes", ())) <= set(first.nodes)
    told = f"{first.means} {steps(first)}".lower()
    for mention in wanted["remedy_mentions"]:
        assert any(word.lower() in told for word in mention.split("|")), (mention, told)


@pytest.mark.parametrize("name", READABLE)
def test_nothing_that_would_be_wrong_is_said(name: str) -> None:
    wanted, found = expected(name), check(name)
    assert not {finding.id for finding in found.findings} & set(wanted.get("must_not_find", ()))
    for word in wanted.get("remedy_must_not_mention", ()):
        assert not [finding for finding in found.findings if word.lower() in steps(finding).lower()]
    for text in wanted.get("unreadable", ()):
        assert [finding for finding in found.findings if f"could not read {text}: " in finding.seen], text


@pytest.mark.parametrize("name", [name for name in READABLE if "cables" in expected(name)])
def test_the_cables(name: str) -> None:
    wanted, found = expected(name), check(name)
    ends = {frozenset(((one.a, one.a_interface), (one.b, one.b_interface))) for one in found.cables}
    assert ends == {frozenset(((a, port), (b, other))) for a, port, b, other in wanted["cables"]}
    missing = {frozenset(two) for two in wanted.get("missing_cables", ())}
    assert {frozenset(two) for two in found.missing_cables} == missing


@pytest.mark.parametrize("name", READABLE)
def test_findings_are_whole_and_in_order(name: str) -> None:
    found = check(name)
    for finding in found.findings:
        assert finding.seen
        assert finding.nodes
        assert finding.evidence in ("L0", "L1", "L2", "L3", "L4", "L5")
        if finding.level in ("failure", "warning"):
            assert finding.means, finding
            assert finding.source, finding
            assert finding.id in KINDS, finding
    ranks = [
        (finding.id != "unreadable" or finding.level != "failure", LEVELS.index(finding.level))
        for finding in found.findings
    ]
    assert all(one <= other for one, other in pairwise(ranks))


def test_a_second_look_gives_the_same() -> None:
    assert check("mac-four-healthy") == check("mac-four-healthy")


@pytest.mark.parametrize("name", [name for name in ALL if name not in READABLE])
def test_a_bad_manifest_is_no_diagnosis(name: str) -> None:
    assert expected(name)["exit"] == 65
    with pytest.raises(BadData):
        read(CAPTURES / name)
