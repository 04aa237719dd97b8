"""Compiled kernels of fastkl; imported as fastkl.kernels, never as a top-level module."""
