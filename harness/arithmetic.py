"""The arithmetic under which numbers are made: the same in every process, so that the numbers are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

THREADS = 1
"""Torch threads of a process that runs shards. Fixed, because sums may round differently with another number."""


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """One torch thread; on a GPU full float32 instead of TF32, and deterministic kernels. As before on leaving."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    try:
        _set(THREADS, False, False, True, False)
        yield
    finally:
        _set(*before)


def _set(threads: int, matmul_tf32: bool, conv_tf32: bool, deterministic: bool, benchmark: bool) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = conv_tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark
