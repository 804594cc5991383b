"""Soft targets without a model: random states on a head whose words have the frequencies of a language.

The size of a cache depends on its content, so these only serve to compare ways to store the same numbers; docs/log.md has the
bytes of a real teacher's targets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.storage import NODES

# P positions, V words, K stored entries, r numbers of a state, n nodes

_STATE = 32
_BLOCK = 1024  # positions at a time: their logits are in memory at once


def arrays(P: int, V: int, K: int = 64) -> dict[str, NDArray[Any]]:
    """The fields of the targets of P positions."""
    g = torch.Generator().manual_seed(0)
    words_Vr = torch.randn((V, _STATE), generator=g)
    frequency_V = -torch.arange(1, V + 1, dtype=torch.float32).log()[torch.randperm(V, generator=g)]
    parts: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, P, _BLOCK):
        states_Pr = torch.randn((min(_BLOCK, P - start), _STATE), generator=g)
        values_PV = (states_Pr @ words_Vr.T * 0.5 + frequency_V).log_softmax(dim=1)
        target_P = torch.multinomial(values_PV.exp(), 1, generator=g)[:, 0]
        ids_PK = values_PV.topk(K, dim=1).indices
        missing = ~(ids_PK == target_P[:, None]).any(dim=1)
        ids_PK[missing, -1] = target_P[missing]
        stored_PK, order = values_PV.gather(1, ids_PK).sort(dim=1, descending=True, stable=True)
        ids_PK = ids_PK.gather(1, order)
        rest_PV = values_PV.scatter(1, ids_PK, -math.inf)
        tail_Pn = torch.stack([(rest_PV / T).logsumexp(dim=1) for T in NODES], dim=1)
        for name, tensor, dtype in (
            ("ids", ids_PK, np.uint32),
            ("logprobs", stored_PK, np.float32),
            ("tail", tail_Pn, np.float32),
            ("target_ids", target_P, np.uint32),
            ("target_logprobs", values_PV.gather(1, target_P[:, None])[:, 0], np.float32),
        ):
            parts.setdefault(name, []).append(tensor.numpy().astype(dtype))
    return {name: np.concatenate(each) for name, each in parts.items()}


def states(P: int, D: int) -> NDArray[np.uint16]:
    """[P, D] the bits of random states in bfloat16."""
    g = torch.Generator().manual_seed(0)
    bits: NDArray[np.uint16] = torch.randn((P, D), generator=g).bfloat16().view(torch.uint16).numpy()
    return bits
