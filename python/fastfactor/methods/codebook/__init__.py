"""Codebooks of scalars, vectors and sums of vectors."""
