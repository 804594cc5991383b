"""Synthetic scenes, the miniature pair, and the demo that distils one into the other."""
