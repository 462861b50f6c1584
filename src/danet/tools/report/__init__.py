"""From run folders to a report: collect.py reads, analysis.py compares, the others write."""
