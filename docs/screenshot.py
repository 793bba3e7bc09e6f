"""The picture in the README: python docs/screenshot.py runs/quickstart docs/quickstart.svg"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from harness import load_run
from harness.report.tables import print_results

run, out = load_run(Path(sys.argv[1])), Path(sys.argv[2])
console = Console(record=True, width=100, file=io.StringIO())
print_results(console, run.results)
picture = console.export_svg(title="harness run suites/quickstart.toml")
# The fonts would come from the network; any monospaced one will do.
out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")
