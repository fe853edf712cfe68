"""Argument checks shared by the public operators. They read shapes, dtypes and, on the CPU, the values of
``cu_seqlens``; on CUDA values are not read back (that would stall the stream), the kernels clamp instead."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, want one of {', '.join(map(repr, choices))}")


def check_tensor(name: str, value: object, dim: int, shape: str) -> None:
    """A floating tensor of ``dim`` dimensions; ``shape`` is how the message names it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, want a tensor of shape {shape}")
    if value.dim() != dim:
        raise ValueError(f"{name}: got {value.dim()} dimensions {tuple(value.shape)}, want {shape}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: got dtype {value.dtype}, want float32, bfloat16 or float16")


def check_same_device(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.device != first.device:
            raise ValueError(f"{name}: got device {value.device}, want {first.device} as {first_name}")


def check_same_dtype(first_name: str, first: Tensor, **others: Tensor) -> None:
    for name, value in others.items():
        if value.dtype != first.dtype:
            raise TypeError(f"{name}: got dtype {value.dtype}, want {first.dtype} as {first_name}")


def check_scale(name: str, value: object, head_dim: int) -> float:
    """The factor of the scores: ``value``, by default ``1 / sqrt(head_dim)``."""
    if value is None:
        return head_dim**-0.5
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, want a number")
    return float(value)


def check_temperature(value: object) -> float:
    temperature = check_scale("temperature", value, 1)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {value}, want a positive number")
    return temperature


def check_index(name: str, value: object, length: int | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, want an int32 tensor")
    if value.dtype != torch.int32:
        raise TypeError(f"{name}: got dtype {value.dtype}, want int32")
    if value.dim() != 1 or value.shape[0] < 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want one dimension and at least one entry")
    if length is not None and value.shape[0] != length:
        raise ValueError(f"{name}: got {value.shape[0]} entries, want {length}")


def check_packing(tokens: int, cu_seqlens: Tensor, max_seqlen: int | None, seqused: Tensor | None) -> int:
    """Checks the packing of ``tokens`` rows and returns ``max_seqlen`` (an upper bound of every length).

    While torch.compile traces, values cannot be read; then ``max_seqlen`` left out becomes ``tokens``.
    """
    check_index("cu_seqlens", cu_seqlens, None)
    if seqused is not None:
        check_index("seqused", seqused, cu_seqlens.shape[0] - 1)
        check_same_device("cu_seqlens", cu_seqlens, seqused=seqused)
    if max_seqlen is not None:
        if isinstance(max_seqlen, bool) or not isinstance(max_seqlen, int | torch.SymInt):
            raise TypeError(f"max_seqlen: got {type(max_seqlen).__name__}, want an int, a length in tokens")
        if max_seqlen < 0:
            raise ValueError(f"max_seqlen: got {max_seqlen}, want a length in tokens")
    if torch.compiler.is_compiling() or cu_seqlens.device.type == "meta":
        return tokens if max_seqlen is None else max_seqlen
    if cu_seqlens.device.type != "cpu":
        if max_seqlen is None:  # one host sync, as the docstrings say
            lengths = cu_seqlens.diff()
            max_seqlen = int(lengths.max()) if lengths.numel() else 0
        return max_seqlen
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0:
        raise ValueError(f"cu_seqlens: got {offsets[0]} as first entry, want 0")
    if offsets[-1] != tokens:
        raise ValueError(f"cu_seqlens: got {offsets[-1]} as last entry, want the number of tokens, {tokens}")
    longest = 0
    for i, (start, stop) in enumerate(pairwise(offsets)):
        if stop < start:
            raise ValueError(
                f"cu_seqlens: got {stop} after {start} at entry {i + 1}, want entries that never descend"
            )
        longest = max(longest, stop - start)
    if max_seqlen is not None and max_seqlen < longest:
        raise ValueError(f"max_seqlen: got {max_seqlen}, want at least the longest sequence, {longest}")
    if seqused is not None:
        for i, used in enumerate(seqused.tolist()):
            length = offsets[i + 1] - offsets[i]
            if not 0 <= used <= length:
                raise ValueError(
                    f"seqused: got {used} at entry {i}, want 0 to the sequence's length, {length}"
                )
    return longest if max_seqlen is None else max_seqlen


def check_attention_pair(
    q_student: Tensor, k_student: Tensor, q_teacher: Tensor, k_teacher: Tensor, cu_seqlens: Tensor
) -> None:
    """The four ``[T, H, D]`` arguments of an attention loss against each other."""
    if not _is_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens):
        _explain_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens)


def _is_attention_pair(*args: Any) -> bool:
    """Whether all is well. Saying what is wrong takes a few microseconds more, which only a bad call pays."""
    if not all(isinstance(x, Tensor) for x in args):
        return False
    q_student, k_student, q_teacher, k_teacher, _ = args
    student, teacher, device = q_student.shape, q_teacher.shape, q_student.device
    return (
        len(student) == 3 == len(teacher)
        and k_student.shape == student
        and k_teacher.shape == teacher
        and student[:2] == teacher[:2]
        and 1 <= student[2] <= 256
        and 1 <= teacher[2] <= 256
        and k_student.dtype == q_student.dtype
        and k_teacher.dtype == q_teacher.dtype
        and q_student.dtype in DTYPES
        and q_teacher.dtype in DTYPES
        and all(x.device == device for x in args[1:])
    )


def _explain_attention_pair(
    q_student: Tensor, k_student: Tensor, q_teacher: Tensor, k_teacher: Tensor, cu_seqlens: Tensor
) -> None:
    for name, value in (
        ("q_student", q_student),
        ("k_student", k_student),
        ("q_teacher", q_teacher),
        ("k_teacher", k_teacher),
    ):
        check_tensor(name, value, 3, "[T, H, D]")
        tokens, heads, head_dim = value.shape
        if not 1 <= head_dim <= 256:
            raise ValueError(f"{name}: got head_dim {head_dim}, want 1 to 256")
        if tokens != q_student.shape[0]:
            raise ValueError(f"{name}: got {tokens} tokens, want {q_student.shape[0]} as q_student")
        if heads != q_student.shape[1]:
            raise ValueError(f"{name}: got {heads} heads, want {q_student.shape[1]} as q_student")
    if k_student.shape[2] != q_student.shape[2]:
        raise ValueError(
            f"k_student: got head_dim {k_student.shape[2]}, want {q_student.shape[2]} as q_student"
        )
    if k_teacher.shape[2] != q_teacher.shape[2]:
        raise ValueError(
            f"k_teacher: got head_dim {k_teacher.shape[2]}, want {q_teacher.shape[2]} as q_teacher"
        )
    check_same_dtype("q_student", q_student, k_student=k_student)
    check_same_dtype("q_teacher", q_teacher, k_teacher=k_teacher)
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens: got {type(cu_seqlens).__name__}, want an int32 tensor")
    check_same_device(
        "q_student",
        q_student,
        k_student=k_student,
        q_teacher=q_teacher,
        k_teacher=k_teacher,
        cu_seqlens=cu_seqlens,
    )


def sequence_spans(cu_seqlens: Tensor, seqused: Tensor | None) -> list[tuple[int, int]]:
    """(start, stop) of what counts of every sequence, for the eager references."""
    offsets = cu_seqlens.tolist()
    used = seqused.tolist() if seqused is not None else [b - a for a, b in pairwise(offsets)]
    return [(start, start + n) for start, n in zip(offsets, used, strict=False)]
