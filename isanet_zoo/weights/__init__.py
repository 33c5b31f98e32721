"""Published and saved weight files."""
