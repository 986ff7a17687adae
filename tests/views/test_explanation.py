"""`exo discover --explain`: counts, strangers, findings with the failures first."""

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from exo_cli.schemas.findings import Explanation, Finding, InterfaceCount, Stranger
from exo_cli.views import explanation as view
from tests.support.screen import shown
from tests.support.topologies import any_text


def example() -> Explanation:
    return Explanation(
        interfaces=(
            InterfaceCount(interface="en0", kind="wifi", addresses=("192.168.1.7",), sent=6, send_errors={},
                           received=21, accepted=12, dropped={"signature": 1, "own echo": 6}),
            InterfaceCount(interface="bridge0", kind="thunderbolt", addresses=(), sent=0,
                           send_errors={"unreachable": 6}, received=0, accepted=0, dropped={}),
        ),
        strangers=(Stranger(address="10.0.0.9:52416", fingerprint="9f3ac0de", reason="other cluster",
                            name="[b]bob[/b]", packets=2),),
        findings=(
            Finding(id="heard", level="ok", about="en0", seen="2 nodes answered"),
            Finding(id="refused", level="failure", about="10.0.0.7:52416", do="exo key join -",
                    seen="TCP connects, TLS is refused", means="Another cluster, or an older key."),
        ),
    )  # fmt: skip


def test_the_whole_answer_at_70_columns() -> None:
    expected = """\
Interfaces                  sent received accepted  dropped
 en0        wifi               6       21       12        7
   192.168.1.7
   dropped   6 own echo, 1 signature
 bridge0    thunderbolt        0        0        0        0
   not sent  6 unreachable

Strangers  nodes of other clusters; what they say of themselves is not
           proven
 10.0.0.9:52416  [b]bob[/b]  key 9f3ac0de  other cluster  2 packets

Findings
 ✗ failure  10.0.0.7:52416
   seen   TCP connects, TLS is refused
   means  Another cluster, or an older key.
   do     exo key join -
 ✓ ok       en0
   seen   2 nodes answered

1 failure
"""
    assert shown(view.render(example(), unicode=True, width=70), 70) == expected


def test_nothing_found_is_said() -> None:
    empty = Explanation(interfaces=(), strangers=(), findings=())
    text = shown(view.render(empty, unicode=False, width=80), 80)
    assert text == "Interfaces  none was used\n\nNothing stands in the way that was looked at.\n"


def test_rows_for_awk() -> None:
    header, body = view.rows(example())
    table = [dict(zip(header, row, strict=True)) for row in body]
    assert [row["record"] for row in table] == ["interface", "interface", "stranger", "finding", "finding"]
    assert (table[0]["dropped"], table[0]["reasons"]) == ("7", "own echo=6,signature=1")
    assert table[1]["reasons"] == "send:unreachable=6"
    assert (table[2]["id"], table[2]["name"]) == ("9f3ac0de", "[b]bob[/b]")
    assert [row["level"] for row in table[3:]] == ["failure", "ok"]
    assert table[3]["do"] == "exo key join -"


counts = st.dictionaries(any_text, st.integers(0, 10**12), max_size=3)
maybe = st.none() | any_text
explanations = st.builds(
    Explanation,
    interfaces=st.lists(
        st.builds(InterfaceCount, interface=any_text, kind=any_text, addresses=st.tuples(any_text),
                  sent=st.integers(0, 10**12), received=st.just(0), accepted=st.just(0),
                  send_errors=counts, dropped=counts),
        max_size=3,
    ).map(tuple),
    strangers=st.lists(
        st.builds(Stranger, address=any_text, fingerprint=any_text, reason=any_text, name=any_text,
                  packets=st.integers(0, 10**9)),
        max_size=3,
    ).map(tuple),
    findings=st.lists(
        st.builds(Finding, id=any_text, level=st.sampled_from(["ok", "warning", "failure", "info"]),
                  about=any_text, seen=any_text, means=maybe, do=maybe, source=maybe),
        max_size=4,
    ).map(tuple),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(explanations, st.sampled_from([30, 80, 120]), st.booleans())
def test_any_explanation_is_shown_harmlessly(explanation: Explanation, width: int, unicode: bool) -> None:
    text = shown(view.render(explanation, unicode=unicode, width=width), width + 200)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert unicode or text.isascii()
    assert all(cell.isprintable() for row in view.rows(explanation)[1] for cell in row)
