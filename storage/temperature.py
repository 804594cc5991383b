"""Stored targets at any temperature between the node temperatures of a cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.errors import TemperatureOutOfRange


def at_temperature(
    logprobs: NDArray[np.float32], tail: NDArray[np.float32], nodes: Sequence[float], temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities at a temperature of the stored entries and of everything not stored.

    Args:
        logprobs: [P, K] log-probabilities at T = 1, nats.
        tail: [P, n] log of the sum over the ids not stored of exp(v_i / T) per node T, nats; -inf: empty.
        nodes: the n node temperatures, ascending.
        temperature: within [nodes[0], nodes[-1]].

    Returns:
        (log_p [P, K], log_r [P]), float32 nats: sum exp(log_p) + exp(log_r) = 1, because the normaliser is the
        stored mass plus the tail mass. At a node its stored tail is used, between nodes the polynomial in 1 / T
        through the logarithms at all nodes (Lagrange). An empty tail stays -inf.

    Raises:
        TemperatureOutOfRange: the temperature lies outside the nodes.
    """
    if not nodes[0] <= temperature <= nodes[-1]:
        raise TemperatureOutOfRange(
            f"temperature {temperature:g} lies outside the cache's nodes [{nodes[0]:g}, {nodes[-1]:g}]; "
            "choose one inside, or dump again with other temperatures"
        )
    log_tail = _tail_at(tail.astype(np.float64), [float(node) for node in nodes], float(temperature))
    scaled = logprobs.astype(np.float64) / temperature
    peak = np.maximum(scaled.max(axis=1, initial=-np.inf), log_tail)
    log_mass = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1) + np.exp(log_tail - peak))
    return (scaled - log_mass[:, None]).astype(np.float32), (log_tail - log_mass).astype(np.float32)


def _tail_at(tail: NDArray[np.float64], nodes: list[float], temperature: float) -> NDArray[np.float64]:
    if temperature in nodes:
        column: NDArray[np.float64] = tail[:, nodes.index(temperature)]
        return column
    empty = np.isneginf(tail.min(axis=1))
    interpolated = np.where(empty[:, None], 0.0, tail) @ np.array(_lagrange_weights(nodes, temperature))
    return np.where(empty, -np.inf, interpolated)


def _lagrange_weights(nodes: list[float], temperature: float) -> list[float]:
    """The weight of the value at each node in the polynomial in 1 / T through all of them."""
    weights = []
    for own in nodes:
        others = [node for node in nodes if node != own]
        weights.append(math.prod((1 / temperature - 1 / node) / (1 / own - 1 / node) for node in others))
    return weights
