"""What is fixed before the teacher is loaded: samples, units, batches, cost."""
