"""The logit cache: arrays, bytes and files. Knows nothing of models."""
