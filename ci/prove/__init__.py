"""Proof without a GB10: a stand-in CUDA runtime, a GPU at hand, emulated aarch64, a fresh machine."""
