"""Files on disk: stored files of factors, and checkpoints of other libraries."""
