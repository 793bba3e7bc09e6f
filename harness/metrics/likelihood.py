"""What a model says of clean images, as means: bits per dimension of a density, cross-entropy of a classifier."""

from __future__ import annotations

from harness.metrics.means import Mean

BITS_PER_DIM = Mean("clean_bits_per_dim")
CROSS_ENTROPY = Mean("negative_log_likelihood")
