"""Format version 1."""
