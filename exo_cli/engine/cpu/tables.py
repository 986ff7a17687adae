"""The records through which Python tells native code what there is: 64-bit integers, many of them addresses.

One place says which number stands where; `passes` reads them, `plan` and `compute` write them. A record is a
run of words in a numpy array that whoever writes it keeps alive.
"""

from typing import Final

# A matrix: where its tiles lie and how they are packed.
TILES: Final = 0
TILE_COUNT: Final = 1
BITS: Final = 2
GROUP: Final = 3
"""Inputs that share a scale, weights and activations alike; 0: neither is packed."""
KIND: Final = 4
INPUTS: Final = 5
TILE_BYTES: Final = 6
BIAS: Final = 7
"""The address of a float32 an output, or 0."""
RECORD: Final = 8
"""Bytes of one activation row, as this matrix wants it."""
FUNCTION: Final = 9
"""The address of the kernel for this format."""
MATRIX: Final = 10
"""How long the record is."""

# A decoder layer.
NORM_IN: Final = 0
NORM_POST: Final = 1
NORM_QUERY: Final = 2
NORM_KEY: Final = 3
SINKS: Final = 4
"""The address of a float32 a head, or 0."""
WINDOW: Final = 5
"""How many positions a row looks back over, itself included; 0: all."""
EXPERTS: Final = 6
"""How many there are; 0: one gated MLP."""
TOP: Final = 7
"""So many experts compute a row."""
QKV: Final = 8
OUT: Final = QKV + MATRIX
GATE_UP: Final = OUT + MATRIX
"""With experts, the first one's: all are of one form."""
DOWN: Final = GATE_UP + MATRIX
ROUTER: Final = DOWN + MATRIX
GATE_UPS: Final = ROUTER + MATRIX
"""The address of a matrix's record an expert."""
DOWNS: Final = GATE_UPS + 1
SHARES: Final = DOWNS + 1
"""0: what a row's experts weigh is 1 in all; 1: as it is among all experts."""
GATING: Final = SHARES + 1
LAYER: Final = GATING + 1
SILU, CLAMPED = 0, 1
"""Which function gates: `rows.gate` or `rows.clamped_gate`."""

# A stage.
WIDTH: Final = 0
HEADS: Final = 1
KV_HEADS: Final = 2
HEAD_WIDTH: Final = 3
HIDDEN: Final = 4
TURN_HALF: Final = 5
TURN_PAIRED: Final = 6
LAYERS: Final = 7
LAYER_TABLE: Final = 8
FLOATS: Final = 9
"""The address of five float32: epsilons of the norms, and what scores are multiplied with."""
NORM_FINAL: Final = 10
ATTEND: Final = 11
"""The address of the attention's kernel."""
KV_BITS: Final = 12
"""Of a number of a key or a value: 16, or 8 with scales beside them."""
MIXTURE: Final = 13
"""The address of the kernel for a layer's experts, where there are any."""
EMBEDDING: Final = 16
HEAD: Final = EMBEDDING + MATRIX
STAGE: Final = HEAD + MATRIX

EPS: Final = 0
EPS_QUERY: Final = 1
EPS_KEY: Final = 2
EPS_FINAL: Final = 3
SCALE: Final = 4

# One request's share of a step.
PART_START: Final = 0
PART_COUNT: Final = 1
PART_POSITION: Final = 2
PART_CACHE: Final = 3
PART_LAYER_BYTES: Final = 4
PART_HEAD_BYTES: Final = 5
"""From one head's keys, or values, to the next one's."""
PART: Final = 8

# A step.
ROWS: Final = 0
PARTS: Final = 1
PART_TABLE: Final = 2
X: Final = 3
TURNS: Final = 4
TOKENS: Final = 5
"""The address of the rows' tokens; 0 where rows came from an earlier stage."""
PACKED: Final = 6
QKV_ROWS: Final = 7
QKV_STRIDE: Final = 8
ATTENDED: Final = 9
HIDDEN_ROWS: Final = 10
"""What goes into `down`; with experts, as ITEMS lie."""
SCRATCH: Final = 11
SCRATCH_BYTES: Final = 12
"""A thread's own."""
SCORE_STRIDE: Final = 13
WANTED: Final = 14
WANTED_TABLE: Final = 15
LOGITS: Final = 16
LOGITS_STRIDE: Final = 17
MANY: Final = 18
"""Whether a request has more than one row."""
BARRIER: Final = 19
"""Where the threads meet: two cache lines."""
COUNTERS: Final = 20
"""Zeros before a step, a cache line each: PHASES a layer, then one for every FEW rows that want logits."""
ROUTED: Final = 21
"""What the router says of a single row."""
CHOSEN: Final = 22
"""By row, its experts: a number and what it weighs, 16 bytes each."""
ITEMS: Final = 23
"""Packed rows, one for each of its experts, expert after expert."""
STEP: Final = 24
PHASES: Final = 5

# A thread's scratch: a table for attention, outputs of a few rows, a row of floats, packed rows, scores.
TABLE_ROWS: Final = 1024
QUERIES, OUTS, ENDS, BEGINS, SINKS_OF = (8 * TABLE_ROWS * column for column in range(5))
"""Attention's table by row: addresses, the positions that it sees, the address of its sink or 0."""
SCRATCH_TILES: Final = 40 * TABLE_ROWS
SCRATCH_REST: Final = SCRATCH_TILES + 8192
FEW: Final = 4
"""Up to so many rows every thread packs for itself, which spares a meeting."""
