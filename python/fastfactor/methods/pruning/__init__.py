"""Pruning, with and without shared weights."""
