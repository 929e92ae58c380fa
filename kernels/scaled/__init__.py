"""Scaled kernels: FP8 values under fp32 scales, and their products."""
