"""PyTorch modules of architectures."""
