"""Many image files restored: which, where to, and what became of each."""

from .records import FAILED, RESTORED, SKIPPED, Record, Summary

__all__ = ["FAILED", "RESTORED", "SKIPPED", "Record", "Summary"]
