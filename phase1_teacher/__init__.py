"""Phase 1: run the frozen teacher once and write its soft targets."""
