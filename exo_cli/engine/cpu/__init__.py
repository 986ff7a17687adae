"""The engine's own CPU path: kernels made by numba that compute what mlx-lm defines, within a bound.

Layers, bottom up: `features` (what the processor has), `jit` (how kernels are compiled and kept), `emit`
(LLVM code by hand, where numba has no words), the kernels (`dots`, `lanes`, `rows`, `attend`), `waits` and
`pool` (threads that wait cheaply), `passes` (a stage's layers in one native call), `layout`, `packing` and
`expand` (weights as the kernels want them), `recognise` and `plan` (from a model to a record of addresses),
and `compute`, which the engine's core talks to. Only this package imports numba.
"""
