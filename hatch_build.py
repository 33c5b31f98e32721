"""Package metadata that hatchling computes: project URLs, and README as the long description."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# The address of the code host, such as "https://github.com/OWNER/isanet_zoo". While it is empty,
# the package has no project URLs, and its long description no links to files of the repository.
REPOSITORY = ""

LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?://|#)([^()\s]+)\)")


class ProjectLinks(MetadataHookInterface):
    """Fill the dynamic fields of `pyproject.toml`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` and `urls`."""
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": long_description(text, REPOSITORY),
        }
        metadata["urls"] = project_urls(REPOSITORY)


def project_urls(repository: str) -> dict[str, str]:
    """Return the links of the package page; none without an address."""
    if not repository:
        return {}
    return {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def long_description(readme: str, repository: str) -> str:
    """Replace links to files by absolute ones; without an address, by their text.

    Args:
        readme: Markdown with links and images that are relative to the repository.
        repository: the address of the code host, or an empty string.
    """

    def absolute(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if not repository:
            return "" if image else text
        kind = "raw" if image else "blob"
        return f"{image}[{text}]({repository}/{kind}/main/{target})"

    return LINK.sub(absolute, readme)
