"""What a model takes: time (`timing`), memory (`memory`), energy (`power`)."""
