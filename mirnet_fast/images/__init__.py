"""Image files to tensors and back, by libvips, keeping what kind of image it was and all that its file had.

`read_photo` and `write_photo` take a photo whole; `Pages` and `PhotoWriter` give and take rows, and several
pages or frames.
"""

from .folders import READABLE, hidden, matching_photos, photos_below
from .kinds import FORMATS, Encoding, Format, ImageError, Kind, Origin, Photo, check_format
from .limits import Limits
from .read import Page, Pages, read_photo
from .write import PhotoWriter, write_photo

__all__ = [
    "FORMATS",
    "READABLE",
    "Encoding",
    "Format",
    "ImageError",
    "Kind",
    "Limits",
    "Origin",
    "Page",
    "Pages",
    "Photo",
    "PhotoWriter",
    "check_format",
    "hidden",
    "matching_photos",
    "photos_below",
    "read_photo",
    "write_photo",
]
