"""Weights of isanet_efficientnet_lite0os8_camvid, which isanet_zoo finds here; no code."""
