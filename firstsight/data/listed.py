"""LLaMA-Factory's `dataset_info.json`: where a dataset is, and how its columns and turns are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from firstsight.data.containers.text import MAX_ROW_BYTES, decode, parse_json
from firstsight.data.entries import Entry, GivenRows, HubSplit, ListedDataset
from firstsight.data.source import DataSource, Tags
from firstsight.errors import DataError
from firstsight.recipe_yaml import nearest

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_COLUMNS = {
    "alpaca": {**_ALPACA, "history": "history", "system": "system", "images": "images"},
    "sharegpt": {"messages": "conversations", "system": "system", "images": "images"},
    "openai": {"messages": "conversations", "system": "system", "images": "images"},
}
"""By `formatting`: what LLaMA-Factory calls a column -> our name of it."""
_FORMATS = {"alpaca": "instruction", "sharegpt": "conversations", "openai": "conversations"}
_DEFAULTS = {"alpaca": _ALPACA, "sharegpt": {"messages": "conversations"}, "openai": {"messages": "conversations"}}
"""Columns if an entry states none."""
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
_TOOLS = "tools are not supported"
_PREFERENCE = "training uses one answer per question, not preferences"
_ELSEWHERE = "download it and give its file as file_name"
_REFUSED = {
    "ranking": _PREFERENCE,
    "num_samples": "rows are not sampled at random; take a slice of a hub split, such as train[:1000]",
    "folder": "name a subset, or a directory with file_name",
    "file_sha1": "it is not checked; remove the key",
    "ms_hub_url": _ELSEWHERE,
    "om_hub_url": _ELSEWHERE,
    "script_url": "scripts are not run; " + _ELSEWHERE,
    "cloud_file_name": _ELSEWHERE,
}
_REFUSED_COLUMNS = {
    "tools": _TOOLS,
    "videos": "video files are not read; list frames as images",
    "audios": "sound is not read",
    "chosen": _PREFERENCE,
    "rejected": _PREFERENCE,
    "kto_tag": _PREFERENCE,
}
_KEYS = ("file_name", "hf_hub_url", "formatting", "subset", "split", "columns", "tags")


def sources_of(source: DataSource, entry: Entry) -> list[tuple[Path | HubSplit | GivenRows, DataSource]]:
    """The files, directories and hub datasets that an entry of a split names, and how to read their rows.

    Raises:
        DataError: an entry that was not found in its `dataset_info.json`, or asks for something that is not supported.
    """
    if not isinstance(entry, ListedDataset):
        return [(entry, source)]
    name = f"{entry.dataset_info.name}, {entry.name!r}"
    if source.format is not None or source.columns:
        key = "format" if source.format is not None else "columns"
        raise DataError(f"{name}: the entry decides form and columns, but data.{key} is also set; remove it")
    info = _entry(entry, name)
    formatting = info.get("formatting", "alpaca")
    if formatting not in _FORMATS:
        raise DataError(f"{name}: 'formatting' must be one of {', '.join(_FORMATS)}, got {formatting!r:.80}")
    settings = replace(
        source,
        format=_FORMATS[formatting],
        columns=_columns(info.get("columns"), formatting, name),
        mapped_only=True,
        tags=None if formatting == "alpaca" else _tags(info.get("tags", {}), name),
    )
    if formatting == "alpaca" and "tags" in info:
        raise DataError(f"{name}: 'tags' are for turns, but the rows of 'formatting': 'alpaca' have none; remove them")
    return [(each, settings) for each in _files(info, entry.dataset_info.parent, name)]


def _entry(entry: ListedDataset, name: str) -> dict[str, Any]:
    path = entry.dataset_info
    if not path.is_file():
        raise DataError(f"{path} not found; check data.root and the name of the dataset_info.json")
    if path.stat().st_size > MAX_ROW_BYTES:
        raise DataError(f"{path.name}: has more than {MAX_ROW_BYTES // 2**20} MiB; expected a dataset_info.json")
    content = parse_json(decode(path.read_bytes(), path.name).removeprefix("\ufeff"), path.name)
    if not isinstance(content, dict) or not all(isinstance(each, dict) for each in content.values()):
        raise DataError(f"{path.name}: expected names of datasets and an object for each")
    if entry.name not in content:
        raise DataError(f"{path.name}: has no dataset {entry.name!r}{nearest(entry.name, list(content))}")
    info: dict[str, Any] = {key: value for key, value in content[entry.name].items() if value not in (None, False)}
    other = "file_name" in info or "hf_hub_url" in info
    for key in list(info):
        if key in ("ms_hub_url", "om_hub_url") and other:
            del info[key]  # the same dataset in another place
        elif key in _REFUSED:
            raise DataError(f"{name}: has the key {key!r}: {_REFUSED[key]}")
        elif key not in _KEYS:
            raise DataError(f"{name}: has the unknown key {key!r}{nearest(key, _KEYS)}")
    return info


def _columns(given: Any, formatting: str, name: str) -> dict[str, str]:
    theirs = _texts(_DEFAULTS[formatting] if given is None else given, "columns", name)
    ours = _COLUMNS[formatting]
    for column in theirs:
        if column in _REFUSED_COLUMNS:
            raise DataError(f"{name}: has the column {column!r}: {_REFUSED_COLUMNS[column]}")
        if column not in ours:
            raise DataError(
                f"{name}: a dataset of 'formatting': {formatting!r} has no column {column!r}{nearest(column, list(ours))}"
            )
    needed = "prompt" if formatting == "alpaca" else "messages"
    if needed not in theirs:
        raise DataError(
            f"{name}: 'columns' must name {needed!r}, the column of the {'questions' if needed == 'prompt' else 'turns'}"
        )
    return {ours[column]: file for column, file in theirs.items()}


def _tags(given: Any, name: str) -> Tags:
    texts = _texts(given, "tags", name)
    for tag in texts:
        if tag not in _TAGS:
            raise DataError(f"{name}: 'tags' has the unknown key {tag!r}{nearest(tag, list(_TAGS))}")
    tags = {**_TAGS, **texts}
    return Tags(
        role=tags["role_tag"], content=tags["content_tag"], roles={tags[tag]: role for tag, role in _ROLES.items()}
    )


def _texts(given: Any, key: str, name: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for text in given.values()):
        raise DataError(f"{name}: {key!r} must map names to names, got {given!r:.80}")
    return dict(given)


def _files(info: dict[str, Any], directory: Path, name: str) -> list[Path | HubSplit]:
    asked = {key: info[key] for key in ("hf_hub_url", "file_name", "subset", "split") if key in info}
    if wrong := [key for key, value in asked.items() if not isinstance(value, str)]:
        raise DataError(f"{name}: {wrong[0]!r} must be a string, got {info[wrong[0]]!r:.80}")
    if "hf_hub_url" in asked and "file_name" in asked:
        raise DataError(f"{name}: expected 'hf_hub_url' or 'file_name', got both; keep one of them")
    if hub := asked.get("hf_hub_url"):
        return [HubSplit(hub=hub, subset=asked.get("subset"), split=asked.get("split", "train"))]
    if "file_name" not in asked:
        raise DataError(
            f"{name}: expected 'file_name' or 'hf_hub_url', got neither; add the one that says where the data are"
        )
    if "subset" in asked or asked.get("split", "train") != "train":
        key = "subset" if "subset" in asked else "split"
        raise DataError(f"{name}: {key!r} is for a hub dataset, but a file is read whole; remove it")
    path = directory / asked["file_name"]
    if path.is_dir() and not any((path / each).is_file() for each in ("state.json", "dataset_dict.json")):
        files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        if not files:
            raise DataError(f"{name}: {path} holds no files")
        return list(files)
    return [path]
