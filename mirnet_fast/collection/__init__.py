"""Many image files restored: which, where to, and what became of each."""

from .cluster import ClusterError, Workers, restore_on_ray
from .job import How, restore_file
from .listing import Item, Listing, ListingError, listed
from .pipeline import restore_files
from .records import FAILED, RESTORED, SKIPPED, Record, Summary

__all__ = [
    "FAILED",
    "RESTORED",
    "SKIPPED",
    "ClusterError",
    "How",
    "Item",
    "Listing",
    "ListingError",
    "Record",
    "Summary",
    "Workers",
    "listed",
    "restore_file",
    "restore_files",
    "restore_on_ray",
]
