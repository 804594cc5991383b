"""Samples joined with their targets, and the batches made of them."""
