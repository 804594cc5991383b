"""What a run will cost: its steps and its memory, before it begins."""
