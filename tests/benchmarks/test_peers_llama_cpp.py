"""What llama.cpp's tools print, as figures. The lines are real ones, shortened."""

import pytest

from benchmarks.peers import perplexity
from benchmarks.peers.children import Failed
from benchmarks.peers.llama_cpp import parse_batched, parse_bench

BENCH = (
    '{{"build_commit": "0c1e570", "model_size": 15362048, "model_n_params": 27269632, "n_threads": 2, '
    '"n_prompt": {prompt}, "n_gen": {gen}, "n_depth": 0, "avg_ns": 45340034, "avg_ts": 359.73}}'
)
BATCHED = (
    '{"n_kv_max": 2048, "pp": 16, "tg": 16, "pl": 8, "t_pp": 0.116518, "speed_pp": 1098.54, '
    '"t_tg": 0.131607, "speed_tg": 972.592651, "speed": 1031.738037}'
)


def test_a_generation_and_a_prompt_are_told_apart() -> None:
    decode = parse_bench("warming up\n" + BENCH.format(prompt=0, gen=16))
    assert decode["decode_tokens_per_s"] == 359.73
    assert "prefill_tokens_per_s" not in decode
    assert parse_bench(BENCH.format(prompt=16, gen=0))["prefill_tokens_per_s"] == 359.73


def test_all_requests_together() -> None:
    assert parse_batched(BATCHED) == {
        "decode_tokens_per_s": 972.592651,
        "prompt_tokens": 16,
        "gen_tokens": 16,
        "requests": 8,
    }


@pytest.mark.parametrize("parse", [parse_bench, parse_batched, perplexity.parse])
def test_no_result_is_a_failure(parse: object) -> None:
    with pytest.raises(Failed, match="no result"):
        parse("error: failed to load the model\n")  # type: ignore[operator]


def test_perplexity_with_and_without_a_comparison() -> None:
    plain = "[1]5.1234,[2]5.2345,\nFinal estimate: PPL = 5.2345 +/- 0.04321\n"
    assert perplexity.parse(plain) == {"perplexity": 5.2345, "kl_divergence": 0.0}
    compared = (
        "Mean PPL(Q)                   :   5.301122 ±   0.044000\n"
        "Mean PPL(base)                :   5.234500 ±   0.043210\n"
        "Mean    KLD:   0.012345 ±   0.000120\n"
    )
    assert perplexity.parse(compared) == {"perplexity": 5.301122, "kl_divergence": 0.012345}


def test_perplexities_as_lines() -> None:
    original, rounded = {"perplexity": 5.0, "kl_divergence": 0.0}, {"perplexity": 5.5, "kl_divergence": 0.01}
    found = {"ours": {"f32": original, "affine4": rounded}, "llama.cpp": {"f32": original}}
    assert "+10.00%" in perplexity.text(found)
