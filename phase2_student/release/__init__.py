"""What leaves a run: quantised exports (`export`), the model card (`card`), the folder that goes to the hub (`publish`)."""
