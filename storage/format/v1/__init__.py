"""Format version 1: what its arrays are (`arrays`), how targets become them (`encoding`), what a writer demands (`checks`)."""
