"""From a picture to a label map."""
