"""Optimizers, one a file, all in the pattern of ``method.Method``."""
