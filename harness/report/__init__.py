"""Reports of a run: terminal, HTML, and the images they show."""

REPORT_FILE = "report.html"
