"""May a robust accuracy be believed? It is an upper bound, and these checks say when an attack failed rather than lost.

Pure functions of rows: those of an attack's cell (`audit`), of its cells at several budgets (`non_monotone`), and of a
further, cheap attack beside it (`judge_probe`). A check that fails makes the number unreliable; its message says what
was seen and what to do. Thresholds were chosen on one half of the models in `harness.testing.zoo` and tried on the
other (docs/audit.md).
"""

from harness.audit.checks import COLUMNS, LIMITED, Check, audit
from harness.audit.comparisons import judge_probe, non_monotone

__all__ = ["COLUMNS", "LIMITED", "Check", "audit", "judge_probe", "non_monotone"]
