"""Evaluation and training."""
