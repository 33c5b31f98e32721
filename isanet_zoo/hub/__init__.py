"""Saved models and the Hugging Face Hub."""
