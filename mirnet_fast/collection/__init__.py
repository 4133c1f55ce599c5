"""Many image files restored: which, where to, and what became of each."""

from .job import How, restore_file
from .listing import Item, Listing, ListingError, listed
from .pipeline import restore_files
from .records import FAILED, RESTORED, SKIPPED, Record, Summary

__all__ = [
    "FAILED",
    "RESTORED",
    "SKIPPED",
    "How",
    "Item",
    "Listing",
    "ListingError",
    "Record",
    "Summary",
    "listed",
    "restore_file",
    "restore_files",
]
