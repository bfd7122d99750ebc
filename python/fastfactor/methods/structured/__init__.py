"""Structured matrices: random projections, signs, diagonal and mixed blocks."""
