"""The arithmetic of a shard is fixed, and the caller's own is as before afterwards."""

from __future__ import annotations

import torch

from harness.arithmetic import THREADS, fixed_arithmetic


def test_fixed_inside_and_as_before_outside() -> None:
    threads = torch.get_num_threads()
    torch.backends.cudnn.benchmark = True
    try:
        with fixed_arithmetic():
            assert torch.get_num_threads() == THREADS
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
        assert torch.get_num_threads() == threads
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.backends.cudnn.benchmark = False
