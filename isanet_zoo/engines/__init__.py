"""Networks prepared for inference."""
