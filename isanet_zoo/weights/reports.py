"""What loading weights into a network did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LoadReport:
    """What loading weights into a network did.

    Attributes:
        source: the file that was read.
        family: whose names the file's tensors have; ``"zoo"`` for this library's.
        trust: ``"verified"``, ``"pinned"`` or ``"unverified"`` (see SECURITY.md); or ``"local"``
            for a file or folder, and ``"hub"`` for a repository, that the user named.
        fresh: parameters that the file could not give, so that they start from scratch.
        adapted: parameters that were changed to fit other input channels.
        unused: tensors of the file that this network has no place for (the auxiliary head's).
    """

    source: Path
    trust: str
    family: str = "zoo"
    fresh: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"{self.source} ({self.trust}, {self.family})"]
        for word in ("fresh", "adapted", "unused"):
            if keys := getattr(self, word):
                notes.append(f"{word}: {', '.join(keys)}")
        return "; ".join(notes)
