"""A hook of MkDocs: pages that lie elsewhere in the repository, and links that lead out of docs/.

The documents are read in the repository too, where their links lead to folders and files. On the site a link
to one of PAGES leads to that page, and of any other file its name is shown.
"""

import posixpath
import re
from pathlib import PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Where they lie in the repository: on the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benches/results/README.md": "results.md",
    "mirnet_fast/pretrained/denoise.md": "denoise.md",
}
_PLACES = {page: place for place, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds PAGES."""
    root = PurePosixPath(config.config_file_path).parent
    for place, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text with links that lead somewhere on the site."""
    source = page.file.src_uri
    folder = posixpath.dirname(_PLACES.get(source, f"docs/{source}"))

    def on_site(link):
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target:
            return link[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        if place in PAGES:
            return f"[{text}]({PAGES[place]}{anchor})"
        if place.startswith("docs/"):
            return f"[{text}]({place.removeprefix('docs/')}{anchor})"
        return f"`{place}`"

    return _LINK.sub(on_site, markdown)
