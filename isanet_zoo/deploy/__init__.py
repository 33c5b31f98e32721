"""From a network to a file that runs without it."""
