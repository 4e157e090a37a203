"""The executor written in Triton, for CUDA devices."""
