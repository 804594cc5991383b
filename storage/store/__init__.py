"""Where a cache lies: one interface, local directories and object stores."""
