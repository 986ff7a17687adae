"""Steps are idempotent; reservations add up; whatever is refused changes nothing."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.engine.ledger import DoesNotFitNow, Ledger, StepRefused


def ledger(**options: int) -> Ledger[str, str]:
    made: Ledger[str, str] = Ledger(budget_bytes=options.pop("budget", 1000))
    made.open(7, 1, start=options.pop("start", 0), limit=options.pop("limit", 100), size=100, held="caches")
    return made


def test_the_next_step_runs_and_its_repeat_gets_the_kept_answer() -> None:
    book = ledger()
    assert book.check(7, 1, 0, 5) == "run"
    book.done(7, 0, 5, "five")
    assert book.check(7, 1, 0, 5) == "repeat"
    assert book.entries[7].kept == "five"
    assert book.check(7, 1, 5, 1) == "run"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ((8, 1, 5, 1), "unknown"),
        ((7, 0, 5, 1), "old-epoch"),
        ((7, 2, 5, 1), "new-epoch"),
        ((7, 1, 6, 1), "gap"),
        ((7, 1, 4, 1), "stale"),
        ((7, 1, 0, 4), "stale"),
        ((7, 1, 5, 96), "length"),
    ],
)
def test_everything_else_is_refused_and_changes_nothing(step: tuple[int, int, int, int], reason: str) -> None:
    book = ledger()
    book.done(7, 0, 5, "five")
    before = copy.deepcopy(book.entries)
    with pytest.raises(StepRefused) as caught:
        book.check(*step)
    assert caught.value.reason == reason
    assert book.entries == before


def test_a_new_epoch_takes_over_and_an_old_goodbye_does_not_end_it() -> None:
    book = ledger()
    book.open(7, 2, start=0, limit=100, size=150, held="fresh")
    assert book.reserved_bytes == 150
    assert not book.close(7, 1)
    with pytest.raises(StepRefused, match="epoch 2 already"):
        book.open(7, 2, start=0, limit=100, size=1, held="again")
    assert book.close(7, 2)
    assert book.reserved_bytes == 0
    assert not book.close(7, 2)


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    book = ledger(budget=250)
    with pytest.raises(DoesNotFitNow) as caught:
        book.open(8, 1, start=0, limit=10, size=151, held="")
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (151, 150)
    assert caught.value.exit == 75
    book.open(8, 1, start=0, limit=10, size=150, held="")
    # In its own next epoch a request may use its own room again.
    book.open(7, 2, start=0, limit=10, size=100, held="")


def test_a_request_may_start_earlier_than_its_prefix_until_it_has_begun() -> None:
    book = ledger(start=40)
    book.rewind(7, 32)
    assert book.check(7, 1, 32, 4) == "run"
    book.done(7, 32, 4, "")
    with pytest.raises(StepRefused):
        book.rewind(7, 0)
    with pytest.raises(StepRefused):
        ledger(start=40).rewind(7, 41)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 12), st.integers(1, 4))))
def test_each_position_is_run_once_per_epoch(steps: list[tuple[int, int, int, int]]) -> None:
    book: Ledger[None, int] = Ledger(budget_bytes=1000)
    run: dict[tuple[int, int], list[int]] = {}
    for request, epoch, position, n in steps:
        try:
            if position == 0 and request not in book.entries:
                book.open(request, epoch, start=0, limit=10, size=10, held=None)
            what = book.check(request, epoch, position, n)
        except StepRefused:
            continue
        if what == "run":
            book.done(request, position, n, n)
            run.setdefault((request, epoch), []).extend(range(position, position + n))
    for done in run.values():
        assert done == list(range(len(done)))
        assert len(done) <= 10
