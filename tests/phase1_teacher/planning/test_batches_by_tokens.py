"""Batches by token budget."""

from hypothesis import given
from hypothesis import strategies as st

from phase1_teacher.planning.batches import MAX_PADDING, batch_by_tokens


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_sample_once_within_budget_and_padding(lengths, budget):
    batches = batch_by_tokens(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        padded = longest * len(batch)
        assert padded <= budget or len(batch) == 1
        assert padded - sum(lengths[index] for index in batch) <= MAX_PADDING * padded
