"""Pairs of families that go through both phases; docs/models.md names them."""

SUITE = [("qwen2_vl", "smolvlm"), ("llama", "qwen2")]
"""In every run of the tests."""
MIXED = [("qwen3_vl", "qwen2_5_vl"), ("gemma3", "qwen2_vl"), ("qwen2", "qwen2_vl")]
"""By `make families`, and every family with itself."""
