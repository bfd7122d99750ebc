"""Sparse codes over a learned dictionary."""
