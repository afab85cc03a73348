"""Metadata that follow from the address of the repository: links and the README.

The address stands once, in ``pyproject.toml``. Links of README.md are relative, so that
they work in a clone; an index shows the README alone, so there they are made absolute.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(
    r"\]\((?!https?://|#)([^)\s]+)\)|(src|href)=\"(?!https?://|#)([^\"]+)\""
)
"""A relative link or image, in Markdown or in HTML."""


def absolute(text, address):
    """Return Markdown with its relative links made absolute."""

    def replace(match):
        path = match[1] or match[3]
        is_image = Path(path).suffix in {".svg", ".png"}
        url = f"{address}/{'raw' if is_image else 'blob'}/main/{path}"
        return f"]({url})" if match[1] else f'{match[2]}="{url}"'

    return RELATIVE.sub(replace, text)


class Metadata(MetadataHookInterface):
    """Add the URLs and the long description."""

    def update(self, metadata):
        """Change the metadata in place."""
        address = self.config["repository"]
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(readme, address),
        }
        metadata["urls"] = {
            "Documentation": f"{address}/tree/main/docs",
            "Source": address,
            "Issues": f"{address}/issues",
            "Changelog": f"{address}/blob/main/CHANGELOG.md",
            "Paper": "https://arxiv.org/abs/2510.04500",
        }
