"""Phase 2: train and evaluate the student on the cached soft targets."""
