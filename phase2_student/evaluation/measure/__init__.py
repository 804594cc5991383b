"""What a model costs: time (`timing`), memory (`memory`), energy (`power`)."""
