"""Prediction: images in, label maps out."""
