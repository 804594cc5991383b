"""What is made of a finished run: quantised exports (`export`), the model card (`card`), the folder for the hub (`publish`)."""
