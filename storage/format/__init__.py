"""How targets become arrays and chunks: one module per format version."""
