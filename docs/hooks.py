"""Hooks of mkdocs: pages may link to files of the repository outside docs/ as they do on a plain git host.

A link like `../../results/emoji/law.png` is relative to the page's own file, so it works where the markdown is read in
the repository. For the site the file is added under `repository/`, or, for the texts of `PAGES`, as a page, and the
link is rewritten. A link to a file that is not served stays as it is, and a strict build refuses it.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Texts of the repository that are pages of the site.
PAGES = {
    "launch/README.md": "guides/launch.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Files that pages show or link to.
SERVED = (
    "results/**/*.png",
    "results/**/*.svg",
    "results/**/*.csv",
    "results/**/*.md",
    "results/**/*.json",
    "results/**/*.html",
    "infinity_jax/checkpoints/emoji/*.png",
    "infinity_jax/checkpoints/emoji/*.json",
    "LICENSE",
)
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
# A block that a test runs is marked `bash exec`; a reader sees an ordinary block.
_EXECUTED = re.compile(r"^(\s*```bash) exec.*$", re.MULTILINE)


def _sources() -> dict[str, str]:
    """File of the repository -> its address in the site, both relative."""
    served = (path for pattern in SERVED for path in sorted(ROOT.glob(pattern)))
    names = (path.relative_to(ROOT).as_posix() for path in served)
    return {name: f"repository/{name}" for name in names} | PAGES


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files of `_sources`."""
    for name, uri in _sources().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links that leave docs/, and the marks of blocks that a test runs."""
    sources = _sources()
    here = page.file.src_uri
    docs = Path(config.docs_dir)
    at = {uri: name for name, uri in sources.items()}.get(here)
    folder = (ROOT / at).parent if at else (docs / here).parent

    def rewritten(link: re.Match[str]) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        if "://" in target or target.startswith(("/", "mailto:")):
            return link[0]
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(docs):
            uri = path.relative_to(docs).as_posix()
        else:
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            uri = "index.md" if name == "README.md" else sources.get(name, "")
        if not uri:
            return link[0]
        relative = os.path.relpath(uri, os.path.dirname(here) or ".").replace(os.sep, "/")
        return f"{before}{relative}{anchor}{after}"

    return _EXECUTED.sub(r"\1", _LINK.sub(rewritten, markdown))
