"""The teacher at work: encoded batches in, soft targets out."""
