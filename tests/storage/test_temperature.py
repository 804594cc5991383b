"""Targets at temperatures that the teacher was never asked for."""

from __future__ import annotations

import numpy as np
import pytest

from storage.errors import TemperatureOutOfRange
from storage.temperature import at_temperature

NODES = (1.0, 1.5, 2.0, 4.0)


def _distribution(positions: int = 20, size: int = 3000, top_k: int = 64):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2.5, size=(positions, size)) - np.log(np.arange(size) + 1.0)
    values = np.sort(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), axis=1)[:, ::-1]
    tail = np.stack([np.log(np.exp(values[:, top_k:] / node).sum(axis=1)) for node in NODES], axis=1)
    return values, values[:, :top_k].astype(np.float32), tail.astype(np.float32)


def _exact(values, top_k: int, temperature: float):
    scaled = values / temperature
    normaliser = np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    tail = np.log(np.exp(scaled - normaliser)[:, top_k:].sum(axis=1))
    return (scaled - normaliser)[:, :top_k], tail


@pytest.mark.parametrize("temperature", [1, 1.25, 1.5, 1.7, 2.0, 3.0, 3.9, 4])
def test_equals_the_softmax_over_everything(temperature):
    values, stored, tail = _distribution()
    log_p, log_r = at_temperature(stored, tail, NODES, temperature)
    exact_p, exact_r = _exact(values, stored.shape[1], temperature)
    bound = 1e-5 if temperature in NODES else 5e-3  # nats; between nodes the polynomial
    assert np.abs(log_p - exact_p).max() < bound
    assert np.abs(log_r - exact_r).max() < bound
    assert log_p.dtype == log_r.dtype == np.float32


@pytest.mark.parametrize("temperature", [1, 1.6, 4])
def test_masses_sum_to_one(temperature):
    _, stored, tail = _distribution()
    log_p, log_r = at_temperature(stored, tail, NODES, temperature)
    total = np.exp(log_p.astype(np.float64)).sum(axis=1) + np.exp(log_r.astype(np.float64))
    np.testing.assert_allclose(total, 1, atol=2e-6)


def test_stored_mass_above_one_is_normalised():
    stored = np.log(np.array([[0.7, 0.3009]], np.float32))
    log_p, log_r = at_temperature(stored, np.full((1, 1), -np.inf, np.float32), (1.0,), 1.0)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-6)
    assert np.isneginf(log_r).all()


@pytest.mark.parametrize("temperature", [1, 1.6])
def test_an_empty_tail_stays_empty(temperature):
    _, stored, tail = _distribution()
    tail[3] = -np.inf
    _, log_r = at_temperature(stored, tail, NODES, temperature)
    assert np.isneginf(log_r[3])
    assert np.isfinite(np.delete(log_r, 3)).all()


@pytest.mark.parametrize("temperature", [0.99, 4.01, 0, -1, float("nan")])
def test_outside_the_nodes_is_refused(temperature):
    _, stored, tail = _distribution()
    with pytest.raises(TemperatureOutOfRange, match=r"outside the cache's nodes \[1, 4\]"):
        at_temperature(stored, tail, NODES, temperature)


def test_no_positions():
    log_p, log_r = at_temperature(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), NODES, 1.7)
    assert log_p.shape == (0, 4)
    assert log_r.shape == (0,)
