"""Photos before and after, in one page of HTML that needs nothing else: no server, no network.

`comparisons` finds what belongs together in files or folders, `write_gallery` makes the page.
"""

from .matching import Comparison, comparisons
from .page import MAX_MB, Gallery, write_gallery

__all__ = ["MAX_MB", "Comparison", "Gallery", "comparisons", "write_gallery"]
