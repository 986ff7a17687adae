"""Bytes that somebody has changed a little. Knows nothing of what they were."""

import random


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One to six changes: bits turned, bytes set, cut out, put in, or said twice."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(changed):
                changed[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + dice.randint(1, 8)]
            case 3:
                changed[at:at] = dice.randbytes(dice.randint(1, 8))
            case _:
                start = dice.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + dice.randint(1, 40)]
    return bytes(changed)
