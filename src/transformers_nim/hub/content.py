# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What result files hold, read so that whatever is wrong with one is said with its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Content(dict[str, Any]):
    """A mapping that says where it is from if a field is missing.

    Attributes:
        where: The file, and the way through it to this mapping.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__({key: _named(value, where, key) for key, value in values.items()})
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.where} has no field {key!r}, only {sorted(self)}; write the file anew")


def _named(value: Any, where: str, key: Any) -> Any:
    inside = f"{where}: {key}" if ": " not in where else f"{where}.{key}"
    if isinstance(value, Mapping):
        return Content(value, inside)
    if isinstance(value, list):
        return [_named(one, where, f"{key}[{index}]") for index, one in enumerate(value)]
    return value


def read_content(path: Path) -> Content:
    """The content of a JSON file.

    Raises:
        ValueError: It is no JSON, or holds something else than a mapping.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of fields, but holds a {type(values).__name__}: {values!r:.80}")
    return Content(values, str(path))
