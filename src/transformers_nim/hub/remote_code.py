# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make checkpoints loadable without this package, for users who pass `trust_remote_code=True`.

transformers then executes the Python files beside the checkpoint: copies of the modules in `model/`. Where this
package is installed, its own classes load the checkpoint and the copies are not executed.

transformers' `register_for_auto_class` would copy these files at every `save_pretrained` of the process, but it names
one class per checkpoint and leaves out the pipeline. So the files are collected here, when a checkpoint is published.
"""

import json
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from .model_card import read_config


_MODEL = Path(__file__).parents[1] / "model"
# The modules that `auto_map` and `custom_pipelines` name.
_ENTRIES = ("configuration_nim", "image_processing_nim", "modeling_nim", "pipeline_nim")
# transformers finds the files to copy by the imports of an entry. Early 5.x releases (seen in 5.4) do not look into
# those files in turn, and `save_pretrained` would lose the pipeline, which no model imports. So each entry names all.
_FOOTER = "\n\nif False:  # what transformers has to copy together with this file\n{}"


def is_own_code(name: str) -> bool:
    """Return whether a class that a config names, such as `"modeling_nim.NIMModel"`, is of a file of this package.

    `"OWNER/NAME--modeling_nim.NIMModel"` is of another repository.
    """
    module, _, cls = name.partition(".")
    return module in _ENTRIES and cls.isidentifier()


def code_files() -> dict[str, str]:
    """Return the Python files of a checkpoint that carries its code, by name.

    Returns:
        All modules in `model/`. Modules that transformers looks up name all others at their end.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_MODEL.glob("*.py"))}
    texts.pop("__init__", None)
    for entry in _ENTRIES:
        texts[entry] += _FOOTER.format(
            "".join(f"    from .{name} import __name__\n" for name in texts if name != entry)
        )
    return {f"{name}.py": text for name, text in texts.items()}


def remote_code_files(folder: str | Path) -> dict[str, str]:
    """Return the files that make a checkpoint loadable without this package, by name. Nothing is written.

    Args:
        folder: A checkpoint with its image processor.

    Returns:
        The Python files, and a `config.json` and a `preprocessor_config.json` that refer to them.

    Raises:
        ValueError: The folder is no NIM checkpoint with an image processor.
    """
    contents: dict[str, dict[str, Any]] = {}
    for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME):
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(f"{folder} has no {name}: save a model and its image processor there first")
        contents[name] = json.loads(path.read_text(encoding="utf-8"))
        model_type = contents[CONFIG_NAME].get("model_type")
        if model_type != "nim":
            raise ValueError(f"{folder} is of model_type {model_type!r}; the code is that of 'nim' alone")
    # Which class the Auto classes take is told by the weights if the config does not say it.
    config = read_config(Path(folder))
    contents[CONFIG_NAME] = config | _code_fields(config.get("architectures") or [])
    # Without a class here, config.json decides. With one, transformers would ask users who have installed this package
    # whether they trust it.
    contents[IMAGE_PROCESSOR_NAME].pop("image_processor_type", None)
    texts = {name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in contents.items()}
    return code_files() | texts


def _code_fields(architectures: list[str]) -> dict[str, Any]:
    """Return the fields of `config.json` that refer to the code beside it."""
    classifiers = [name for name in architectures if name.endswith("ForImageClassification")]
    # Pretraining checkpoints name no classifier.
    classifier = (classifiers or ["NIMForRobustImageClassification"])[0]
    auto_map = {
        "AutoConfig": "configuration_nim.NIMConfig",
        "AutoImageProcessor": "image_processing_nim.NIMImageProcessor",
        "AutoModel": "modeling_nim.NIMModel",
        "AutoModelForImageClassification": f"modeling_nim.{classifier}",
        "AutoModelForPreTraining": "modeling_nim.NIMForPreTraining",
    }
    pipeline = {"impl": "pipeline_nim.NIMImageClassificationPipeline", "pt": ["AutoModelForImageClassification"]}
    return {"auto_map": auto_map, "custom_pipelines": {"image-classification": pipeline}}
