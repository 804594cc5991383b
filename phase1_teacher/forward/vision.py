"""One vision pass per image: its features are kept for later questions about it in the same unit."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from firstsight.models.loading import to_device
from firstsight.prompting import Prompter, collate
from phase1_teacher.forward.unit_batches import EncodedSample

# M patches of all images, C values of a patch, I images


class VisionFeatures:
    """Model inputs of a batch whose images go through the vision tower once per unit.

    Which images are encoded together depends on the unit's batches alone, like everything that changes LLM.int8 results.
    If the model does not take features in place of pixels (transformers before 5.23, other architectures), every question
    brings its own pixels.

    Args:
        model: the teacher.
        prompter: the teacher's prompter.
    """

    def __init__(self, model: Any, prompter: Prompter) -> None:
        self.model = model
        self.pad_id = prompter.pad_id
        accepted = inspect.signature(model.base_model.forward).parameters
        self.shared = prompter.family.one_feature_per_image and "mm_encoder_outputs" in accepted
        self.encoded = 0
        """Number of images that went through the vision tower."""
        self._features: dict[str, Tensor] = {}

    def forget(self, keep: frozenset[str] = frozenset()) -> None:
        """Keep only the features of the images with these digests."""
        self._features = {digest: value for digest, value in self._features.items() if digest in keep}

    def inputs(self, batch: Sequence[EncodedSample]) -> dict[str, Any]:
        """Padded inputs of the backbone on its device."""
        device = self.model.device
        if not self.shared or not any(sample.images for sample in batch):
            self.encoded += sum(len(sample.images) for sample in batch)
            return {k: to_device(v, device) for k, v in collate([s.encoded for s in batch], self.pad_id).items()}
        self._encode_new(batch)
        grids = [
            {name: value for name, value in sample.encoded.images.items() if name != "pixel_values"} for sample in batch
        ]
        kept = [replace(sample.encoded, images=rest) for sample, rest in zip(batch, grids, strict=True)]
        inputs: dict[str, Any] = collate(kept, self.pad_id)
        inputs = {name: to_device(tensor, device) for name, tensor in inputs.items()}
        features = tuple(self._features[digest] for sample in batch for digest in sample.images)
        inputs["mm_encoder_outputs"] = {"image": _Features(features)}
        return inputs

    def _encode_new(self, batch: Sequence[EncodedSample]) -> None:
        digests: list[str] = []
        pixels, grids = [], []
        for sample in batch:
            if not sample.images:
                continue
            values_MC, grid_I3 = sample.encoded.images["pixel_values"], sample.encoded.images["image_grid_thw"]
            parts = torch.split(values_MC, grid_I3.prod(dim=1).tolist())
            for digest, part, grid in zip(sample.images, parts, grid_I3, strict=True):
                if digest not in self._features and digest not in digests:
                    digests.append(digest)
                    pixels.append(part)
                    grids.append(grid)
        if digests:
            device = self.model.device
            features = self.model.base_model.get_image_features(
                to_device(torch.cat(pixels), device), to_device(torch.stack(grids), device), return_dict=True
            )
            self._features.update(zip(digests, features.pooler_output, strict=True))
            self.encoded += len(digests)


class _Features:
    """The part of a vision tower's output that the backbone reads: features per image, [tokens, D] each."""

    def __init__(self, pooler_output: tuple[Tensor, ...]) -> None:
        self.pooler_output = pooler_output
