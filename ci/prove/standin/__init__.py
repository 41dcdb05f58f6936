"""A family library's host code, driven without a GPU: its objects linked with a stand-in CUDA runtime that records."""
