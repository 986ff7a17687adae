"""How the next token is chosen, as a driver asks for it and the last stage does it. Types only."""

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Temperature 0 is greedy; what is random depends on the seed and the position alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int = 0
