"""The network: ISANet on timm encoders."""
