from hypothesis import given
from hypothesis import strategies as st

from exo_cli.engine.pace import FIRST, TARGET_S, Pace


def test_it_begins_short_grows_while_that_is_easy_and_knows_its_bound() -> None:
    pace = Pace(300)
    seen = []
    for _ in range(5):
        seen.append(pace.tokens)
        pace.took(pace.tokens, 0.01)
    assert seen == [FIRST, 128, 256, 300, 300]
    assert Pace(5).tokens == 5


def test_what_took_too_long_is_halved_and_the_rest_of_a_prompt_says_nothing() -> None:
    pace = Pace(2048)
    pace.took(64, 1.0)
    assert pace.tokens == 32
    pace.took(7, 0.001)  # the last chunk of a prompt is short
    assert pace.tokens == 32
    pace.took(64, 1.0)  # one that was under way already
    assert pace.tokens == 32
    pace.took(32, TARGET_S * 0.9)
    assert pace.tokens == 32
    for _ in range(10):
        pace.took(pace.tokens, 60.0)
    assert pace.tokens == 1


@given(st.floats(1e-6, 0.3), st.floats(0, 1e-4), st.integers(1, 2048))
def test_where_cost_grows_with_the_square_chunks_settle_under_the_target(
    linear_s: float, square_s: float, most: int
) -> None:
    def cost_s(tokens: int) -> float:
        return linear_s * tokens + square_s * tokens * tokens

    pace = Pace(most)
    taken = []
    for _ in range(40):
        taken.append(pace.tokens)
        pace.took(pace.tokens, cost_s(pace.tokens))
    settled = taken[20:]
    assert all(cost_s(tokens) <= TARGET_S for tokens in settled)
    assert min(settled) == most or cost_s(2 * min(settled)) >= TARGET_S * 0.25 or min(settled) * 2 > most
