"""The dropout mask of varlen_attention in Triton: the C++ kernel's, bit for bit, so that it too is never stored.

A hash of the seed, the head, the query's token and the key's place in its sequence: see the class Dropout of
csrc/varlen_attention/varlen_attention_cpu.cpp. It takes three multiplications for an entry of the map, where Philox,
from which tl.rand draws, takes twenty wide ones.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def row_words(seed_ptr, tokens, head, heads):
    """Two words of random bits for each of the queries ``tokens``, which are places in the pack."""
    row = (tokens.to(tl.int64) * heads + head).to(tl.uint64)
    key = _mix64(tl.load(seed_ptr).to(tl.uint64) ^ _mix64(row + 0x9E3779B97F4A7C15))
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def kept_entries(low, high, cols, dropout_p):
    """Which entries of the map dropout keeps, for words of their rows and the places of their columns."""
    bits = (cols.to(tl.uint32) * 0x9E3779B9 + low) ^ high
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return (bits ^ (bits >> 16)) >= tl.cast(dropout_p * 4294967296.0, tl.uint32)
