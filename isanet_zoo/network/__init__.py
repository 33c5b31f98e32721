"""What is computed, and nothing else: ISANet on timm encoders."""
