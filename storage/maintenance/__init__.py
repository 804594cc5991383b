"""Commands on a whole cache: status, verify, garbage collection."""
