"""The bucket's gradient error against autograd of both losses."""

import pytest
import torch

from phase1_teacher.forward.gradient import GradientReport, bucket_error, gradient_lines
from phase1_teacher.summary import advice


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_error_is_that_of_the_losses_gradients(temperature, k):
    torch.manual_seed(k)
    teacher, student = (
        3 * torch.randn(40, dtype=torch.float64),
        torch.randn(40, dtype=torch.float64, requires_grad=True),
    )
    stored = teacher.topk(k).indices
    rest = torch.ones(40, dtype=torch.bool)
    rest[stored] = False
    log_p, log_q = ((logits / temperature).log_softmax(0) for logits in (teacher, student))
    whole = (log_p.exp() * (log_p - log_q)).sum()
    (slope,) = torch.autograd.grad(whole, student, retain_graph=True)
    bucket = (log_p.exp() * (log_p - log_q))[stored].sum()
    if rest.any():
        r, s = log_p[rest].logsumexp(0), log_q[rest].logsumexp(0)
        bucket = bucket + r.exp() * (r - s)
    (other,) = torch.autograd.grad(bucket, student)
    squares = bucket_error(teacher, student.detach(), stored, temperature=temperature)
    assert squares[0] * temperature**-2 == pytest.approx(float((slope - other).square().sum()), rel=1e-9, abs=1e-20)
    assert squares[1] * temperature**-2 == pytest.approx(float(slope.square().sum()), rel=1e-9)


def sums(**mass):
    found = {"fidelity_positions": 10.0}
    for T, value in mass.items():
        found[f"fidelity_mass_k64_{T}"] = 10 * value
        found[f"fidelity_kl_k64_{T}"] = 0.0
    return found


@pytest.mark.parametrize(
    ("mass", "exact", "said"),
    [
        (
            {"T1": 0.93, "T2": 0.37},
            False,
            "train this cache at T = 1, where they hold 93%, or dump cache.targets: exact",
        ),
        ({"T1": 0.99, "T2": 0.98}, False, "top_k serves this recipe"),
        (
            {"T1": 0.5, "T2": 0.1},
            False,
            "at T = 1 50%: set cache.tail_rank, dump cache.targets: exact, or raise cache.top_k",
        ),
        ({"T1": 0.93, "T2": 0.37}, True, "this cache keeps the whole distribution, at any temperature"),
    ],
)
def test_advice(mass, exact, said):
    (line,) = advice(sums(**mass), 2.0, None, exact=exact)
    assert line.startswith("Advice: at T = 2 the 64 largest entries hold ")
    assert said in line
    report = GradientReport(student="s", positions=3, errors={2.0: 0.313}, seconds=1.0, device="cpu")
    assert "and their gradient is off by 31%" in advice(sums(**mass), 2.0, report, exact=exact)[0]
    assert advice({}, 2.0, None, exact=exact) == []
    (at_one,) = advice(sums(**mass), 1.0, None, exact=exact)
    assert at_one.count("at T = 1") == 1


@pytest.mark.parametrize(
    ("mass", "even", "shaped", "said"),
    [
        (
            0.37,
            0.8,
            0.1,
            "is 0.1000 nats with the shape of the rest, 0.8000 without it: train with it (loss.tail: shape",
        ),
        (0.37, 0.1, 0.3, "0.1000 without it: train with loss.tail: bucket, or dump with a larger cache.tail_rank, or"),
        (0.37, 0.8, None, "this cache keeps the shape of the rest (tail_rank 8)"),
        (0.98, 0.8, 0.1, "top_k serves this recipe"),
    ],
)
def test_advice_for_a_tail_with_a_shape(mass, even, shaped, said):
    found = sums(T1=0.93, T2=mass) | {"fidelity_kl_k64_T2": 10 * even}
    if shaped is not None:
        found["fidelity_kl_shape_T2"] = 10 * shaped
    report = GradientReport(student="s", positions=3, errors={2.0: 0.313}, seconds=1.0, device="cpu")
    (line,) = advice(found, 2.0, report, exact=False, tail_rank=8)
    assert said in line
    assert "their gradient with a bucket is off by 31%" in line


def test_what_was_not_measured_is_said():
    report = GradientReport(student="s", positions=0, errors={}, seconds=1.0, device="cpu", problem="no weights")
    assert gradient_lines(report, 64) == ["The bucket's gradient error for s was not measured: no weights"]
