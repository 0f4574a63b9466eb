# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Makes the Auto classes and the image-classification pipeline of transformers know NIM.

transformers imports its modules when they are first used, and each registration needs one of them (and torch). So each
is done once transformers has imported that module: `import transformers_nim` alone costs nothing, and needs no torch.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Callable
from types import ModuleType


def _register_config(auto: ModuleType, ours: ModuleType) -> None:
    auto.AutoConfig.register("nim", ours.NIMConfig, exist_ok=True)


class _Classes(tuple):
    """Several classes for one config. Early 5.x releases ask every registered class for its name, tuples too."""

    __slots__ = ()
    __name__ = "NIMForRobustImageClassification"


def _register_models(auto: ModuleType, ours: ModuleType) -> None:
    auto.AutoModel.register(ours.NIMConfig, ours.NIMModel, exist_ok=True)
    auto.AutoModelForPreTraining.register(ours.NIMConfig, ours.NIMForPreTraining, exist_ok=True)
    # A checkpoint's own class is chosen; the first is for those that name neither, such as pretraining checkpoints.
    classifiers = _Classes((ours.NIMForRobustImageClassification, ours.NIMForImageClassification))
    auto.AutoModelForImageClassification.register(ours.NIMConfig, classifiers, exist_ok=True)


def _register_image_processors(auto: ModuleType, ours: ModuleType) -> None:
    classes = {"torchvision": ours.NIMImageProcessor, "pil": ours.NIMImageProcessorPil}
    auto.AutoImageProcessor.register(ours.NIMConfig, image_processor_classes=classes, exist_ok=True)


def _register_pipeline(pipelines: ModuleType, ours: ModuleType) -> None:
    tasks = pipelines.PIPELINE_REGISTRY.supported_tasks
    task = tasks["image-classification"]
    # Pipelines of other models stay of the class that stood there (a dotted path is transformers' own class).
    if isinstance(task["impl"], type) and not issubclass(task["impl"], ours.NIMImageClassificationPipeline):
        ours.NIMImageClassificationPipeline.fallback = task["impl"]
    # A new mapping: the class that stood there keeps the old one as its own registration.
    tasks["image-classification"] = {**task, "impl": ours.NIMImageClassificationPipeline}


# Module of transformers, module of this package, and what to do when both are there.
_REGISTRATIONS: list[tuple[str, str, Callable[[ModuleType, ModuleType], None]]] = [
    ("transformers.models.auto.configuration_auto", f"{__package__}.configuration_nim", _register_config),
    ("transformers.models.auto.modeling_auto", f"{__package__}.modeling_nim", _register_models),
    (
        "transformers.models.auto.image_processing_auto",
        f"{__package__}.image_processing_nim",
        _register_image_processors,
    ),
    ("transformers.pipelines", f"{__package__}.pipeline_nim", _register_pipeline),
]
_WATCHED = {name for registration in _REGISTRATIONS for name in registration[:2]}
_finished: set[str] = set()


def _register_what_is_ready() -> None:
    for theirs, ours, register in list(_REGISTRATIONS):
        if theirs in _finished:
            importlib.import_module(ours)
            # Not finished if `ours` is what caused the import of `theirs`; then this runs again after `ours`.
            if ours in _finished:
                register(sys.modules[theirs], sys.modules[ours])


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders find the watched modules, and registers what is ready once one has been executed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _WATCHED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _finished.add(fullname)
            _register_what_is_ready()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Registers NIM with what transformers has already imported, and with the rest as soon as it is imported."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    _finished.update(_WATCHED & sys.modules.keys())
    _register_what_is_ready()
