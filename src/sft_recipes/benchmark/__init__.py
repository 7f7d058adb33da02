"""What this machine really does: one program that measures it, in sections, within a budget of seconds."""

from pathlib import Path

BUDGET = 400
"""Seconds that are meant for one H100."""
RESULTS = Path("benchmarks")
"""Where results are written, and where pages are made from."""
