"""The rows of the comparison and their arithmetic."""

import json
from dataclasses import replace

import pytest

from benchmarks.peers.cases import QUICK, Case, Row, Sizes, Work, rows
from benchmarks.peers.table import Run, results, text

OURS = Case("exo", "small", 4, Work("decode", gen=8), ((0, 1),))
THEIRS = Case("llama.cpp", "small", 4, Work("decode", gen=8), ((0, 1),))
ROW = Row("decode", "decode, 2 threads", OURS, (THEIRS,), 1.0, 1.2)


def run(case: Case, value: float | None, group: str = "decode", **found: object) -> Run:
    metric = {} if value is None else {"decode_tokens_per_s": value}
    return Run(group, 0, case, {**metric, **found}, None if value else "it broke", 1.0, 0.1)


def test_every_row_of_the_issue_is_there() -> None:
    titles = "\n".join(row.title for row in rows(Sizes()))
    for wanted in (
        "decode, 2 threads, llama-3.2-1b",
        "decode, 1 thread, llama-3.2-1b",
        "decode, of the read bandwidth, llama-3.2-1b",
        "decode, 2 threads, llama-250m",
        "prefill, 256 tokens, llama-3.2-1b",
        "prefill, 2048 tokens, llama-250m",
        "context, decode at 4096 tokens",
        "requests, 8 at once",
        "formats, 8-bit decode",
        "formats, bf16 decode",
        "memory, resident",
        "start, load to first token",
        "decode, 2 stages on the same cores ÷ unsplit, llama-250m",
        "decode, 3 stages on the same cores ÷ unsplit, llama-3.2-1b",
        "requests, 8 on 2 stages of a core each ÷ the best of 1 stage",
        "requests, 8 on 2 stages of a core each, of the read bandwidth",
        "÷ RPC",
        "÷ stock mlx-lm",
    ):
        assert wanted in titles


@pytest.mark.parametrize("sizes", [Sizes(), QUICK, replace(QUICK, small=QUICK.large)])
def test_rows_are_told_apart_by_their_titles(sizes: Sizes) -> None:
    titles = [row.title for row in rows(sizes)]
    assert len(set(titles)) == len(titles)


def test_what_is_compared_takes_turns_in_one_group() -> None:
    for row in rows(Sizes()):
        assert {case.geometry for case in (row.ours, *row.theirs)} == {row.ours.geometry}
        assert row.group.startswith(row.ours.geometry)


def test_stages_that_all_have_work_divide_the_requests() -> None:
    eight = Work("decode", gen=8, requests=8)
    stages = (((0,),), ((0,), (1,)), ((0,), (1,), (2,)))
    assert [Case("memory", "small", 4, eight, each).together for each in stages] == [8, 4, 2]
    assert [Case("memory", "small", 4, Work("decode"), each).together for each in stages] == [1, 1, 1]


def test_the_ratio_is_of_medians() -> None:
    runs = [run(OURS, value) for value in (1.0, 50.0, 3.0)] + [run(THEIRS, value) for value in (2.0, 4.0)]
    (found,) = results([ROW], runs)
    assert found.ratio == pytest.approx(1.0)
    assert found.met is True
    (slower,) = results([replace(ROW, must=1.01)], runs)
    assert slower.met is False


def test_less_is_better_for_time_and_memory() -> None:
    work = Work("start", prompt=8, gen=1)
    ours, theirs = replace(OURS, work=work), replace(THEIRS, work=work)
    row = Row("start", "start", ours, (theirs,), 1.5)
    runs = [
        Run("start", 0, each, {"first_token_s": s}, None, 1.0, 0.0)
        for each, s in ((ours, 2.0), (theirs, 1.0))
    ]
    (found,) = results([row], runs)
    assert (found.ratio, found.met) == (2.0, False)


def test_the_best_of_several_others_counts() -> None:
    tensor = replace(THEIRS, split="tensor")
    runs = [run(OURS, 1.0), run(THEIRS, 2.0), run(tensor, 4.0)]
    (found,) = results([replace(ROW, theirs=(THEIRS, tensor))], runs)
    assert found.theirs.case == tensor
    assert found.ratio == pytest.approx(0.25)


def test_runs_of_another_group_do_not_count() -> None:
    (found,) = results([ROW], [run(OURS, 1.0, group="another"), run(THEIRS, 1.0)])
    assert found.ratio is None
    assert found.met is None


def test_the_table_says_what_is_missing_and_what_was_less() -> None:
    runs = [run(OURS, 0.5, gen_tokens=3), run(THEIRS, None)]
    found = results([ROW], runs)
    said = text(found)
    assert "exo: 3 of 8 tokens" in said
    assert "llama.cpp: it broke" in said
    document = found[0].document
    assert document["ratio"] is None
    assert json.loads(json.dumps(document))["ours"]["median"] == 0.5
