"""Images and label maps."""
