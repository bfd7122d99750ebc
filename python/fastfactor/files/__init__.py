"""Bytes on disk: stored files of factors, and the checkpoints of other libraries."""
