"""From run folders to a report: study.py reads, analysis.py compares, report.py and the others write."""
