"""How much of the teacher a cache keeps: KL(full teacher || what the store gives back), measured while dumping.

The store gives back the quantised stored entries and, for everything else, its quantised tail mass spread evenly over the
ids not stored. Beside k itself, k/4 and k/8 are measured on the same positions: what a smaller cache would keep.
All figures are sums over positions, so the units of any number of workers add up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstsight.recipe import CacheSection
from firstsight.vocabulary import VocabularyAlignment
from storage.format.base import FormatVersion
from storage.format.layout import Layout
from storage.format.v1.encoding import decode_targets, encode_targets
from storage.targets import Targets
from storage.temperature import at_temperature
from storage.wording import counted

# m measured positions, S shared ids, K stored entries, J node temperatures, t reported temperatures

SHAPE_KL = "fidelity_kl_shape_T"
"""Begins the name of the sum of KL with a tail that has a shape (`tail_basis.shape_kl`); the temperature follows."""
REPORTED = (1.0, 2.0, 4.0)
"""Temperatures of the report, where they lie within the cache's nodes."""


def reported_temperatures(nodes: Sequence[float], training: float | None = None) -> tuple[float, ...]:
    """The temperatures of the report: those of `REPORTED` and of the training that a cache with these nodes can be read at."""
    wanted = {*REPORTED, *(() if training is None else (training,))}
    return tuple(T for T in sorted(wanted) if nodes[0] <= T <= nodes[-1])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a fidelity report measures."""

    layout: Layout
    """That of the top_k cache whose losses are measured."""
    temperatures: tuple[float, ...]


def comparison(version: FormatVersion, vocabulary: VocabularyAlignment, training: float) -> Comparison:
    """What the report of a cache measures.

    Args:
        version: of the cache. One of exact targets loses nothing: it is compared with a top_k cache for a student of the same
            vocabulary, as the defaults of a recipe make it.
        vocabulary: of the dump.
        training: the recipe's temperature.
    """
    layout = version.layout
    if not isinstance(layout, Layout):
        usual = CacheSection()
        layout = Layout(
            top_k=min(usual.top_k, int(vocabulary.shared.sum())),
            temperatures=tuple(sorted({*usual.temperatures, training})),
            vocabulary_size=len(vocabulary.teacher_of_student),
            shared_ids=tuple((start, stop) for start, stop in vocabulary.shared_ranges()),
        )
    return Comparison(layout=layout, temperatures=reported_temperatures(layout.temperatures, training))


def smaller_k(top_k: int) -> list[int]:
    """k/8, k/4 and k, each at least 1 and once."""
    return sorted({max(1, top_k // 8), max(1, top_k // 4), top_k})


@torch.inference_mode()
def full_moments(logprobs_mS: Tensor, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What the KL needs of the teacher's full distribution.

    Args:
        logprobs_mS: float32, log-probabilities at T = 1 over the shared ids.
        temperatures: of the report.

    Returns:
        float32 [m, t], both per position and temperature: logsumexp(v / T), and sum p log p of the distribution in nats.
    """
    if not temperatures:
        return logprobs_mS.new_empty((len(logprobs_mS), 0)), logprobs_mS.new_empty((len(logprobs_mS), 0))
    normalisers, negentropies = [], []
    for T in temperatures:
        scaled_mS = logprobs_mS / T
        peak_m1 = scaled_mS.amax(dim=1, keepdim=True)
        weight_mS = scaled_mS.sub_(peak_m1).exp()
        sum_m = weight_mS.sum(dim=1)
        # w log w of an underflowed w is 0, not nan
        negentropies.append(torch.linalg.vecdot(weight_mS, scaled_mS.clamp_(min=-1e4)) / sum_m - sum_m.log())
        normalisers.append(peak_m1[:, 0] + sum_m.log())
    return torch.stack(normalisers, 1), torch.stack(negentropies, 1)


def fidelity_sums(
    exact: Targets,
    log_normaliser_mt: NDArray[np.float32],
    negentropy_mt: NDArray[np.float32],
    layout: Layout,
    temperatures: Sequence[float] | None = None,
) -> dict[str, float]:
    """Sums over the measured positions: their number, and per k and T the KL in nats and the stored mass.

    Args:
        exact: targets before quantisation, all soft.
        log_normaliser_mt: logsumexp(v / T), from `full_moments`.
        negentropy_mt: sum p log p in nats, from `full_moments`.
        layout: of the cache.
        temperatures: t of them, of the report; None: `reported_temperatures`.
    """
    if not len(exact):
        return {}
    sums = {"fidelity_positions": float(len(exact))}
    if temperatures is None:
        temperatures = reported_temperatures(layout.temperatures)
    # other dumps into the cache may be for another training temperature
    sums |= {_count_name(T): float(len(exact)) for T in temperatures if T not in REPORTED}
    shared = sum(stop - start for start, stop in layout.shared_ids)
    for k in smaller_k(layout.top_k):
        kept = truncated(exact, k, layout.temperatures)
        read = _through_store(kept, replace(layout, top_k=k))
        for column, T in enumerate(temperatures):
            p_mK = np.exp(kept.logprobs.astype(np.float64) / T - log_normaliser_mt[:, column, None])
            log_q_mK, log_r_m = at_temperature(read.logprobs, read.tail, layout.temperatures, T)
            mass_m = p_mK.sum(axis=1)
            rest_m = np.clip(1 - mass_m, 0.0, None)
            log_each_m = np.where(np.isneginf(log_r_m), 0.0, log_r_m) - np.log(max(1, shared - k))
            kl_m = negentropy_mt[:, column] - (p_mK * log_q_mK).sum(axis=1) - rest_m * log_each_m
            sums[f"fidelity_kl_k{k}_T{T:g}"] = float(kl_m.sum())
            sums[f"fidelity_mass_k{k}_T{T:g}"] = float(mass_m.sum())
    return sums


def truncated(exact: Targets, k: int, nodes: Sequence[float]) -> Targets:
    """The targets that a dump with a smaller k would have stored, the answer's own token among them."""
    if k == exact.ids.shape[1]:
        return exact
    position_m = (exact.ids == exact.target_ids[:, None]).argmax(axis=1)
    chosen_mK = np.tile(np.arange(k), (len(exact), 1))
    chosen_mK[:, -1] = np.where(position_m >= k, position_m, k - 1)
    left = np.ones(exact.ids.shape, dtype=np.bool_)
    np.put_along_axis(left, chosen_mK, False, axis=1)
    tail_mJ = np.empty_like(exact.tail)
    for j, T in enumerate(nodes):
        moved_mK = np.where(left, exact.logprobs.astype(np.float64) / T, -np.inf)
        both = np.concatenate([moved_mK, exact.tail[:, j : j + 1]], axis=1)
        tail_mJ[:, j] = np.logaddexp.reduce(both, axis=1)
    return replace(
        exact,
        ids=np.take_along_axis(exact.ids, chosen_mK, axis=1),
        logprobs=np.take_along_axis(exact.logprobs, chosen_mK, axis=1),
        tail=tail_mJ,
    )


def report_lines(sums: Mapping[str, float], training: float | None = None) -> list[str]:
    """The report as lines of text, and what follows from it; none where nothing was measured.

    Args:
        sums: of all units.
        training: the recipe's temperature.
    """
    measured = {
        (int(found[1]), float(found[2]))
        for name in sums
        if (found := re.fullmatch(r"fidelity_mass_k(\d+)_T(.+)", name))
    }
    if not measured:
        return []
    sizes, temperatures = (sorted(set(column)) for column in zip(*measured, strict=True))
    temperatures = [T for T in temperatures if T in REPORTED or training == T]
    lines = [
        f"Fidelity on {counted(sums['fidelity_positions'], 'position')}: KL(full teacher || read back) in nats, and the stored mass"
    ]
    lines.append("  " + f"{'k':>6}" + "".join(f"{f'T = {T:g}: KL':>13}{'mass':>10}" for T in temperatures))
    for k in sizes:
        cells = [
            f"{sums[f'fidelity_kl_k{k}_T{T:g}'] / _count(sums, T):>13.5f}{mean_mass(sums, k, T):>10.5f}"
            for T in temperatures
        ]
        lines.append("  " + f"{k:>6}" + "".join(cells))
    if any(name.startswith(SHAPE_KL) for name in sums):
        cells = [f"{sums.get(f'{SHAPE_KL}{T:g}', 0.0) / _count(sums, T):>13.5f}{'':10}" for T in temperatures]
        lines.append(
            f"  {'shape':>6}{''.join(cells).rstrip()}  (k = {sizes[-1]} with the tail's shape; above it is spread evenly)"
        )
    return lines


def largest_k(sums: Mapping[str, float]) -> int:
    """The k of the cache, or of the one that an exact cache is compared with; 0 where nothing was measured."""
    return max((int(found[1]) for name in sums if (found := re.match(r"fidelity_mass_k(\d+)_T", name))), default=0)


def mean_mass(sums: Mapping[str, float], k: int, temperature: float) -> float | None:
    """The mean mass of the k stored entries at a temperature; None where it was not measured."""
    return _mean(sums, f"fidelity_mass_k{k}_T{temperature:g}", temperature)


def mean_kl(sums: Mapping[str, float], k: int, temperature: float) -> float | None:
    """The mean KL of the full teacher to what k stored entries and a tail spread evenly give back; None: not measured."""
    return _mean(sums, f"fidelity_kl_k{k}_T{temperature:g}", temperature)


def mean_shape_kl(sums: Mapping[str, float], temperature: float) -> float | None:
    """Likewise with the tail's shape."""
    return _mean(sums, f"{SHAPE_KL}{temperature:g}", temperature)


def _mean(sums: Mapping[str, float], name: str, temperature: float) -> float | None:
    total, count = sums.get(name), _count(sums, temperature)
    return total / count if total is not None and count else None


def _count_name(temperature: float) -> str:
    return f"fidelity_positions_T{temperature:g}"


def _count(sums: Mapping[str, float], temperature: float) -> float:
    """Positions that were measured at a temperature."""
    return sums.get("fidelity_positions" if temperature in REPORTED else _count_name(temperature), 0.0)


def _through_store(exact: Targets, layout: Layout) -> Targets:
    """What the store gives back for these targets."""
    return decode_targets(*encode_targets(exact, layout), layout)
