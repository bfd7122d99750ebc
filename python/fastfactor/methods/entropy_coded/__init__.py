"""Entropy-coded trellis quantization."""
