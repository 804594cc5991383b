"""Steps and memory of a run, before it begins."""
