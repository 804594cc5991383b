"""The order of samples: each once per epoch, the same steps for any number of processes."""

import numpy as np
import pytest

from phase2_student.data.order import GlobalBatches

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(5, 400, size=101)]


def steps_of(processes, batch_size, accumulation, **options):
    """Real samples per optimiser step, as the processes see them, and the number of fillers."""
    parts = []
    for rank in range(processes):
        batches = GlobalBatches(
            LENGTHS, batch_size=batch_size, accumulation=accumulation, processes=processes, rank=rank, **options
        )
        batches.set_epoch(3)
        mine = list(batches)
        assert len(mine) == len(batches)
        assert all(len(batch) == batch_size for batch in mine)
        parts.append(mine)
    steps, fillers = [], 0
    for first in range(0, len(parts[0]), accumulation):
        indices = [i for part in parts for batch in part[first : first + accumulation] for i in batch]
        steps.append(sorted(i for i in indices if i >= 0))
        fillers += sum(i < 0 for i in indices)
    return steps, fillers


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_steps_do_not_depend_on_the_number_of_processes(group, shuffle):
    options = {"seed": 5, "group": group, "shuffle": shuffle}
    one, _ = steps_of(1, 2, 4, **options)
    for processes, batch_size, accumulation in ((2, 2, 2), (4, 2, 1), (2, 1, 4), (8, 1, 1), (1, 8, 1)):
        assert steps_of(processes, batch_size, accumulation, **options)[0] == one
    assert sorted(i for step in one for i in step) == list(range(len(LENGTHS)))


def test_what_is_filled_up_is_marked():
    steps, fillers = steps_of(4, 3, 2)
    assert fillers == -len(LENGTHS) % 12
    assert sum(map(len, steps)) == len(LENGTHS)


def test_every_epoch_has_its_own_order_and_every_seed():
    batches = GlobalBatches(LENGTHS, batch_size=4, seed=1)
    first = list(batches)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(GlobalBatches(LENGTHS, batch_size=4, seed=2)) != first


def test_grouping_saves_padding():
    lengths = np.asarray(LENGTHS)

    def padded(group):
        batches = GlobalBatches(LENGTHS, batch_size=4, group=group)
        return sum(len(batch) * lengths[[i if i >= 0 else ~i for i in batch]].max() for batch in batches)

    assert padded(True) < 1.1 * lengths.sum()
    assert padded(False) > 1.3 * lengths.sum()
