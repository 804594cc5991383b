"""Export, model card, publishing."""
