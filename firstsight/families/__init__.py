"""What differs from one model family to another."""
