"""Processors on machines without torchvision: the stock class without its video processor."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any


def stills_class(config: Any, base: Any = None) -> Any:
    """The processor class of a model, without the video processor if torchvision is missing.

    Args:
        config: of the model.
        base: a class to mix in before it in that case.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    stock = PROCESSOR_MAPPING.get(type(config), None)
    if is_torchvision_available() or stock is None or "video_processor" not in stock.get_attributes():
        return AutoProcessor
    return _stills_of(stock, base)


def _stills_of(stock: Any, base: Any) -> Any:
    options = [name for name in inspect.signature(stock.__init__).parameters if name not in _PARTS]

    class Stills(*(() if base is None else (base,)), stock):  # type: ignore[misc]
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
        ) -> None:
            # transformers reads this signature to know which parts to load
            super().__init__(
                image_processor=image_processor,
                tokenizer=tokenizer,
                video_processor=None,
                chat_template=chat_template,
                **kwargs,
            )

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            given = {**processor_dict, **kwargs}
            return cls(*args, **{name: given[name] for name in (*options, "chat_template") if name in given})

        def options(self) -> dict[str, Any]:
            return {name: getattr(self, name) for name in options if hasattr(self, name)}

        def __reduce__(self) -> tuple[Any, ...]:
            # spawned data workers get it pickled, and a class made here cannot be found by its name
            parts = (self.image_processor, self.tokenizer, self.chat_template)
            return _stills, (stock, base, *parts, self.options())

        def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
            # part by part, as the files of the stock class, which loads them where torchvision is installed
            self.tokenizer.save_pretrained(save_directory)
            self.image_processor.save_pretrained(save_directory)
            if options:
                content = {"processor_class": stock.__name__, **self.options()}
                Path(save_directory, "processor_config.json").write_text(json.dumps(content, indent=2) + "\n")

    Stills.__name__ = stock.__name__
    return Stills


_PARTS = ("self", "image_processor", "tokenizer", "video_processor", "chat_template", "args", "kwargs")


def _stills(
    stock: Any, base: Any, image_processor: Any, tokenizer: Any, chat_template: str | None, given: dict[str, Any]
) -> Any:
    return _stills_of(stock, base)(image_processor, tokenizer, chat_template=chat_template, **given)
