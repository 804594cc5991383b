"""The fused pass against full distributions in float64; the fidelity report against KL computed in full."""

import numpy as np
import pytest
import torch

from firstsight.vocabulary import VocabularyAlignment
from phase1_teacher.forward.fidelity import fidelity_sums, report_lines, reported_temperatures, truncated
from phase1_teacher.forward.soft_targets import TopKHead
from storage.format.layout import Layout
from storage.targets import Targets

NODES = (1.0, 1.5, 2.0, 4.0)


def alignment(kind, rows=5000, student_rows=4900, tokens=4800):
    ids = np.arange(tokens)
    to_student = np.full(rows, -1)
    if kind == "identical":
        to_student[:tokens] = ids
    else:  # permuted, and the student lacks some
        to_student[:tokens] = np.random.default_rng(0).permutation(tokens)
        to_student[:tokens:7] = -1
    to_teacher = np.full(student_rows, -1)
    known = to_student >= 0
    to_teacher[to_student[known]] = np.flatnonzero(known)
    return VocabularyAlignment(
        student_of_teacher=to_student,
        teacher_of_student=to_teacher,
        teacher_tokens=np.arange(rows) < tokens,
        kind=kind,
    )


def made(kind, k, *, count=300, sharpness=3.0, bias=False):
    generator = torch.Generator().manual_seed(k)
    aligned = alignment(kind)
    head = torch.randn(5000, 32, generator=generator) * sharpness / 32**0.5
    offset = torch.randn(5000, generator=generator) if bias else None
    states = torch.randn(count, 32, generator=generator)
    shared = np.flatnonzero(aligned.shared)
    targets = torch.from_numpy(np.random.default_rng(1).choice(shared, count))
    maker = TopKHead(head, offset, aligned, top_k=k, temperatures=NODES)
    logits = states.double() @ head.double().T + (0 if offset is None else offset.double())
    return aligned, shared, targets, maker, maker(states, targets), logits, states


@pytest.mark.parametrize(
    ("kind", "k", "bias"),
    [("identical", 1, False), ("identical", 16, True), ("partial", 64, False), ("partial", 300, False)],
)
def test_the_fused_pass_equals_the_full_distribution(kind, k, bias):
    aligned, shared, targets, _, block, logits, _ = made(kind, k, bias=bias)
    full = logits[:, aligned.teacher_of_student[shared]].log_softmax(dim=1)  # [N, S]
    column = {int(index): place for place, index in enumerate(shared)}
    for row in range(len(full)):
        target = column[int(targets[row])]
        order = full[row].argsort(descending=True)[:k].tolist()
        expected = order if target in order else [*order[:-1], target]
        found = [column[index] for index in block.ids_NK[row].tolist()]
        assert len(set(found)) == k
        assert target in found
        torch.testing.assert_close(full[row, found], full[row, expected], atol=1e-5, rtol=0)  # near ties may swap
    columns = torch.tensor([[column[index] for index in row] for row in block.ids_NK.tolist()])
    torch.testing.assert_close(block.logprobs_NK.double(), full.gather(1, columns), atol=2e-5, rtol=1e-5)
    rest = full.scatter(1, columns, -torch.inf)
    for j, T in enumerate(NODES):
        torch.testing.assert_close(block.tail_NJ[:, j].double(), (rest / T).logsumexp(1), atol=2e-5, rtol=1e-5)
    tokens = torch.from_numpy(aligned.teacher_tokens)
    lost = tokens & torch.from_numpy(aligned.student_of_teacher < 0)
    dropped = logits[:, tokens].softmax(dim=1)[:, lost[tokens]].sum(1)
    torch.testing.assert_close(block.dropped_N.double(), dropped, atol=1e-6, rtol=1e-4)
    assert block.finite_N.all()


@pytest.mark.parametrize("nodes", [(1.0, 3.0, 6.0), (0.5, 0.7), (2.0, 4.0), (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)])
def test_tails_at_other_nodes(nodes):
    aligned, shared, targets, maker, _, logits, states = made("partial", 16)
    other = TopKHead(maker.head_VD, None, aligned, top_k=16, temperatures=nodes)
    block = other(states, targets, torch.arange(4))
    assert block.log_normaliser_mt.shape == (4, len(reported_temperatures(nodes)))
    full = logits[:, aligned.teacher_of_student[shared]].log_softmax(dim=1)
    column = {int(index): place for place, index in enumerate(shared)}
    columns = torch.tensor([[column[index] for index in row] for row in block.ids_NK.tolist()])
    rest = full.scatter(1, columns, -torch.inf)
    for j, T in enumerate(nodes):
        torch.testing.assert_close(block.tail_NJ[:, j].double(), (rest / T).logsumexp(1), atol=2e-5, rtol=1e-5)


def test_everything_stored_leaves_an_empty_tail():
    aligned = VocabularyAlignment(
        student_of_teacher=np.arange(20),
        teacher_of_student=np.arange(20),
        teacher_tokens=np.ones(20, bool),
        kind="identical",
    )
    maker = TopKHead(torch.randn(20, 4), None, aligned, top_k=20, temperatures=NODES)
    block = maker(torch.randn(3, 4), torch.tensor([0, 5, 19]))
    assert block.tail_NJ.isneginf().all()
    assert (block.logprobs_NK.exp().sum(1) - 1).abs().max() < 1e-5


def test_bad_logits_are_flagged_row_by_row():
    *_, targets, maker, _, _, states = made("identical", 8)
    states = states.clone()
    states[3], states[5] = torch.nan, torch.inf
    finite = maker(states, targets).finite_N
    assert (~finite).nonzero()[:, 0].tolist() == [3, 5]


def test_no_positions_at_all():
    *_, maker, _, _, states = made("identical", 8)
    assert len(maker(states[:0], torch.zeros(0, dtype=torch.int64)).ids_NK) == 0


def as_targets(block, targets):
    return Targets(
        ids=block.ids_NK.numpy().astype(np.uint32),
        logprobs=block.logprobs_NK.numpy(),
        tail=block.tail_NJ.numpy(),
        target_ids=targets.numpy().astype(np.uint32),
        target_logprobs=block.target_logprobs_N.numpy(),
        soft=np.ones(len(targets), bool),
    )


def test_the_moments_are_those_of_the_measured_positions():
    *_, targets, maker, block, _, states = made("partial", 64)
    assert block.log_normaliser_mt.shape == (0, 3)
    maker.chunk = 5
    rows = torch.arange(2, len(states), 3)
    measured = maker(states, targets, rows)
    torch.testing.assert_close(measured.tail_NJ, block.tail_NJ)
    for column, T in enumerate(reported_temperatures(NODES)):
        v = maker.log_probabilities(states[rows]).double()
        torch.testing.assert_close(
            measured.log_normaliser_mt[:, column].double(), (v / T).logsumexp(1), atol=1e-5, rtol=0
        )
        p = (v / T).softmax(1)
        torch.testing.assert_close(
            measured.negentropy_mt[:, column].double(), (p * p.log()).sum(1), atol=1e-4, rtol=1e-5
        )


def test_a_smaller_k_is_what_a_dump_with_it_gives():
    aligned, _, targets, maker, block, _, states = made("partial", 64)
    small = TopKHead(maker.head_VD, None, aligned, top_k=16, temperatures=NODES)(states, targets)
    cut = truncated(as_targets(block, targets), 16, NODES)
    wanted = as_targets(small, targets)
    np.testing.assert_array_equal(cut.ids, wanted.ids)
    np.testing.assert_allclose(cut.logprobs, wanted.logprobs, atol=1e-5)
    np.testing.assert_allclose(cut.tail, wanted.tail, atol=2e-5)


def test_the_report_is_the_kl_of_what_the_store_gives_back():
    aligned, shared, targets, maker, block, logits, states = made("partial", 64, sharpness=5.0)
    layout = Layout(
        top_k=64, temperatures=NODES, vocabulary_size=4900, shared_ids=tuple((int(i), int(i) + 1) for i in shared)
    )
    measured = maker(states, targets, torch.arange(len(states)))
    exact = as_targets(block, targets)
    sums = fidelity_sums(exact, measured.log_normaliser_mt.numpy(), measured.negentropy_mt.numpy(), layout)
    full = logits[:, aligned.teacher_of_student[shared]]
    place = {int(index): column for column, index in enumerate(shared)}
    for k in (8, 16, 64):
        kept = truncated(exact, k, NODES)
        columns = torch.tensor([[place[int(index)] for index in row] for row in kept.ids])
        step = 3 / 64
        stored = torch.from_numpy(np.rint(kept.logprobs.astype(np.float64) / step) * step)
        tail = torch.from_numpy(np.rint(kept.tail.astype(np.float64) * 128) / 128)
        for T in (1.0, 2.0, 4.0):
            log_p = (full / T).log_softmax(1)
            even = tail[:, NODES.index(T)] - np.log(len(shared) - k)
            log_q = even[:, None].expand(-1, len(shared)).scatter(1, columns, stored / T)
            log_q = log_q.log_softmax(1)
            kl = float((log_p.exp() * (log_p - log_q)).sum())
            assert sums[f"fidelity_kl_k{k}_T{T:g}"] == pytest.approx(kl, rel=1e-3, abs=1e-3)
            mass = float(log_p.exp().gather(1, columns).sum())
            assert sums[f"fidelity_mass_k{k}_T{T:g}"] == pytest.approx(mass, rel=1e-5)
    assert sums["fidelity_positions"] == len(targets)
    lines = report_lines(sums, 2.0)
    assert [line.split()[0] for line in lines[2:]] == ["8", "16", "64"]
    assert report_lines({}, 2.0) == []
