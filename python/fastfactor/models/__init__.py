"""Whole models: recipes, compression, decompression, comparison, inspection and reports."""
