"""A committed unit: its manifest, its objects checked and decoded, its decoded form in a scratch directory."""
