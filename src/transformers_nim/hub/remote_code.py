# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that carry their code, for people who have not installed this package.

transformers can execute Python files that lie beside a checkpoint, if its user passes `trust_remote_code=True`. Those
files are this package's own modules, copied; nothing is written twice. Where the package is installed they are not
executed: its own classes load the same checkpoint.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME


# Modules in which transformers looks for a class; those that they import come along.
_ENTRIES = ("configuration_nim", "modeling_nim", "image_processing_nim", "pipeline_nim")
# transformers copies what a module names in imports: early 5.x releases not what those modules import in turn, and
# `save_pretrained` not the pipeline.
_FOOTER = """

if False:  # what transformers has to copy together with this file
{names}"""
# For checkpoints that name no class, such as configs without weights.
_DEFAULT_CLASSIFIER = "NIMForRobustImageClassification"
# What transformers looks for, too, to find the files that it has to copy.
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)


def code_files() -> dict[str, str]:
    """The Python files of a checkpoint that carries its code, by name.

    Returns:
        The modules of this package that models, image processors and the pipeline are made of. Those in which
        transformers looks for classes name all others at their end.
    """
    texts: dict[str, str] = {}
    waiting = list(_ENTRIES)
    while waiting:
        module = waiting.pop()
        if module not in texts:
            texts[module] = (Path(__file__).parents[1] / "model" / f"{module}.py").read_text(encoding="utf-8")
            waiting += _RELATIVE_IMPORT.findall(texts[module])
    for entry in _ENTRIES:
        others = sorted(texts.keys() - {entry})
        texts[entry] += _FOOTER.format(names="".join(f"    from .{other} import __name__\n" for other in others))
    return {f"{module}.py": text for module, text in sorted(texts.items())}


def config_with_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says where the code lies beside it.

    Args:
        config: What it says without.
    """
    classifiers = [name for name in config.get("architectures") or [] if name.endswith("ForImageClassification")]
    classifier = (classifiers or [_DEFAULT_CLASSIFIER])[0]
    auto_map = {
        "AutoConfig": "configuration_nim.NIMConfig",
        "AutoImageProcessor": "image_processing_nim.NIMImageProcessor",
        "AutoModel": "modeling_nim.NIMModel",
        "AutoModelForImageClassification": f"modeling_nim.{classifier}",
        "AutoModelForPreTraining": "modeling_nim.NIMForPreTraining",
    }
    pipeline = {"impl": "pipeline_nim.NIMImageClassificationPipeline", "pt": ["AutoModelForImageClassification"]}
    return {**config, "auto_map": auto_map, "custom_pipelines": {"image-classification": pipeline}}


def image_processor_with_code(image_processor: Mapping[str, Any]) -> dict[str, Any]:
    """What `preprocessor_config.json` says where the code lies beside it.

    Args:
        image_processor: What it says without.

    Returns:
        The same without a class, so that `config.json` decides: transformers would ask users who have installed this
        package whether they trust a class that is named here.
    """
    return {name: value for name, value in image_processor.items() if name != "image_processor_type"}


def to_json(content: Mapping[str, Any]) -> str:
    """A mapping as transformers writes its JSON files."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def remote_code_files(folder: str | Path) -> dict[str, str]:
    """The files that make a checkpoint loadable without this package, by name; nothing is written.

    Args:
        folder: The checkpoint.

    Returns:
        The Python files, and `config.json` and `preprocessor_config.json` that refer to them.

    Raises:
        ValueError: The folder is no NIM checkpoint.
    """
    changes = {CONFIG_NAME: config_with_code, IMAGE_PROCESSOR_NAME: image_processor_with_code}
    files = code_files()
    for name, change in changes.items():
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(f"{folder} has no {name}: save a model and its image processor there first")
        content = json.loads(path.read_text(encoding="utf-8"))
        if name == CONFIG_NAME and content.get("model_type") != "nim":
            raise ValueError(f"{path} is of model_type {content.get('model_type')!r}; the code is that of 'nim' alone")
        files[name] = to_json(change(content))
    return files


def write_remote_code(folder: str | Path) -> list[Path]:
    """Makes a checkpoint loadable without this package, by users who pass `trust_remote_code=True`.

    Args:
        folder: A checkpoint with its image processor. Python files are added, and the two configs refer to them.

    Returns:
        The files that were written.

    Raises:
        ValueError: The folder is no NIM checkpoint.
    """
    files = remote_code_files(folder)
    for name, text in files.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    return [Path(folder) / name for name in files]
