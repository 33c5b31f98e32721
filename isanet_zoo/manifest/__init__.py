"""The weights manifest as typed records."""
