"""From a published file to a checked state dict."""
