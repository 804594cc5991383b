"""The KL that a validation tells of every objective: at T = 1 on the run's own targets, whatever it minimises at whatever T."""

import math

import pytest
import torch
from test_exact_loss import case as exact_case
from test_loss import make_case
from test_shaped_loss import case as shaped_case

from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss, kl_at_one
from phase2_student.loss.objective import PLAIN_KL, LossTerms, Objective


def both(states, head, at_t, at_one, unshared, temperature, **objective):
    """The KL beside the terms of an objective at T, and that of targets which are at T = 1."""
    of = Objective(temperature=temperature, alpha=0.7, **objective)
    _, terms = distillation_loss(states, head, at_t, of, unshared_ids=unshared, num_items=7.0)
    assert terms.kl.isnan()
    got = kl_at_one(states, head, at_t, of, terms, unshared_ids=unshared)
    _, wanted = distillation_loss(states, head, at_one, PLAIN_KL, unshared_ids=unshared, num_items=1.0)
    return got.item(), wanted.kd.item(), of, terms


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 1.7, 2.0, 4.0])
def test_on_stored_entries(name, temperature):
    states, head, at_t, unshared, _ = make_case(seed=40, k=8, temperature=temperature, soft_all=False)
    _, _, at_one, _, _ = make_case(seed=40, k=8, temperature=1.0, soft_all=False)
    assert torch.equal(at_t.ids_NK, at_one.ids_NK)
    known = type(at_t)(**{**vars(at_t), "log_r1_N": at_one.log_r_N})
    got, wanted, of, terms = both(states, head, known, at_one, unshared, temperature, divergence=DIVERGENCES[name]())
    assert got == pytest.approx(wanted, rel=1e-5)
    assert of.means(terms._replace(kl=torch.tensor(got)), training=False)["kl"] == pytest.approx(
        wanted / int(at_t.soft_N.sum())
    )
    assert "kl" not in of.means(terms, training=False)
    assert "kl" not in of.means(terms._replace(kl=torch.tensor(got)), training=True)


def test_a_rest_that_is_not_known_at_one_gives_none_but_where_it_is_minimised():
    states, head, at_t, unshared, _ = make_case(seed=41, k=8, temperature=2.0)
    assert at_t.at_one(2.0) is None
    of = Objective(temperature=2.0, alpha=0.7)
    _, terms = distillation_loss(states, head, at_t, of, unshared_ids=unshared, num_items=1.0)
    assert kl_at_one(states, head, at_t, of, terms, unshared_ids=unshared).isnan()
    _, _, at_one, _, _ = make_case(seed=41, k=8, temperature=1.0)
    of = Objective(temperature=1.0, alpha=0.7)
    _, terms = distillation_loss(states, head, at_one, of, unshared_ids=unshared, num_items=1.0)
    assert torch.equal(kl_at_one(states, head, at_one, of, terms, unshared_ids=unshared), terms.kd)
    bound = Objective(temperature=1.0, alpha=0.7, tail="renormalize")
    assert not bound.is_kl


@pytest.mark.parametrize("temperature", [1.0, 2.0, 11.0])
def test_on_exact_targets(temperature):
    found = exact_case(torch.float32, seed=5)
    one = found["targets"]
    at_t = type(one)(**{**vars(one), "temperature": temperature})
    got, wanted, *_ = both(
        found["states"], found["head"], at_t, one, found["unshared"], temperature, divergence=DIVERGENCES["js"]()
    )
    assert got == pytest.approx(wanted, rel=1e-6)


def test_on_a_tail_with_a_shape():
    (states, head), at_t, unshared = shaped_case(2.0, seed=6)
    _, one, _ = shaped_case(1.0, seed=6)
    scores = (2.0 * at_t.stored.log_p_NK).log_softmax(dim=1)
    log_r1 = torch.full((len(scores),), math.log(0.3))
    at_t = type(at_t)(**{**vars(at_t), "stored": type(at_t.stored)(**{**vars(at_t.stored), "log_r1_N": log_r1})})
    stored = type(one.stored)(**{**vars(one.stored), "log_p_NK": scores + math.log(0.7), "log_r_N": log_r1})
    one = type(one)(**{**vars(one), "stored": stored})
    got, wanted, *_ = both(states, head, at_t, one, unshared, 2.0, divergence=DIVERGENCES["tv"]())
    assert got == pytest.approx(wanted, rel=1e-5)


def test_no_soft_target_is_no_kl():
    """And so never the best of several runs."""
    sums = LossTerms(*torch.tensor([0.0, 3.0, 0.0, 0.0, 2.0, 2.0, 0.0]))
    assert "kl" not in Objective(temperature=2.0, alpha=0.5).means(sums, training=False)
