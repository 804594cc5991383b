"""From soft targets to committed units."""
