"""What the harness itself registers, as any plugin would: metrics and executors."""

from __future__ import annotations
