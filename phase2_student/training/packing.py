"""Padding-free batches: all samples of a micro-batch in one row, each attending to itself alone.

Qwen2-VL takes four rows of positions for this: the place within the sample, which shows where a new sample begins, and the
three of M-RoPE, which start again in every sample. FlashAttention 2 then treats the samples separately; other attention gets a
block-diagonal mask: the result is the same, but the cost grows with the square of the whole row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from firstsight.families import family_of

# B samples, L tokens of the longest, S tokens of all samples, N answer positions, D hidden size


def can_pack(model: Any) -> bool:
    """Whether the model's positions can be computed per sample and packed: true for the Qwen-VL families."""
    return family_of(model.config).packs


def packed_states(model: Any, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """Hidden states at the answer positions, the same as from `models.backbone_states`, without computing the padding.

    Args:
        model: a model of the Qwen2-VL family, with a head.
        inputs: from `prompting.collate`, padded on the right.
        rows: int64 [N], from `prompting.answer_index`.
        columns: int64 [N], from the same function.

    Returns:
        [N, D] in the model's dtype.
    """
    backbone = model.base_model
    mask_BL = inputs["attention_mask"].bool()
    within_BL = mask_BL.long().cumsum(dim=1) - 1
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs}
    if grids:
        rotary_3BL, _ = backbone.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            attention_mask=inputs["attention_mask"],
            **grids,
        )
    else:
        rotary_3BL = within_BL.expand(3, -1, -1)
    places_S = mask_BL.flatten().nonzero()[
        :, 0
    ]  # only once, since the host must wait for the device to know how many there are
    positions_4S = torch.cat([within_BL[None], rotary_3BL]).flatten(1)[:, places_S]
    flat = ("input_ids", "mm_token_type_ids")
    pixels = {name: value for name, value in inputs.items() if name not in (*flat, "attention_mask")}
    hidden_SD = backbone(
        **{name: inputs[name].flatten()[places_S][None] for name in flat},
        **pixels,
        position_ids=positions_4S[:, None],
        use_cache=False,
    ).last_hidden_state[0]
    lengths_B = mask_BL.sum(dim=1)
    starts_B = lengths_B.cumsum(dim=0) - lengths_B
    states_ND: Tensor = hidden_SD[starts_B[rows] + columns]
    return states_ND
