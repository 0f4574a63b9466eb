# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Damaged checkpoints: what is in their files is loaded and what is not is told, or they are refused in a sentence."""

import json
import logging
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from sentences import CASES, SEED, attempt
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, pipeline

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification, NIMModel
from transformers_nim.conversion import save_bfloat16
from transformers_nim.robustness.classifiers import load_with_processor
from transformers_nim.training.start import Start


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
INDEX = f"{WEIGHTS}.index.json"
JSONS = [
    "", "null", "[]", "{}", "5", '"x"', "{", '{"model_type": 5}', '{"model_type": "nim"}', '{"model_type": "vit"}',
    '{"model_type": "no such"}', "\x00", '{"weight_map": 5}', '{"weight_map": {}}', '{"weight_map": {"a": 5}}',
    '{"weight_map": {"nim.layernorm.weight": "no such file"}}', '{"weight_map": {"nim.layernorm.weight": "../x"}}',
]  # fmt: skip
ARCHITECTURES = [
    None, [], [""], ["TheirOwn"], ["ViTModel"], ["NIMModel"], ["NIMForPreTraining"], ["NIMForImageClassification"],
    ["NIMForRobustImageClassification"], ["NIMForPreTraining", "NIMForImageClassification"], "NIMModel", 5, [5], {},
]  # fmt: skip
PROCESSORS = ["AutoImageProcessor", "NoSuchProcessor", "ViTImageProcessor", "BertTokenizer", 5, None, ""]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """One model of each kind."""
    models = [NIMForPreTraining(tiny_config()), NIMModel(tiny_config())]
    models += [tiny_model(NIMForImageClassification), tiny_model(), tiny_model(denoise=False)]
    return [Path(save_with_processor(model.eval(), tmp_path_factory.mktemp("saved"))) for model in models]


# Kinds of damage: each changes a folder and says what it did.


def cut(folder: Path, rng: np.random.Generator) -> str:
    path = folder / str(rng.choice([WEIGHTS, CONFIG, PROCESSOR], p=[0.6, 0.2, 0.2]))
    content = path.read_bytes()
    left = int(rng.integers(len(content)))
    path.write_bytes(content[:left])
    return f"{path.name} cut to {left} of {len(content)} bytes"


def scribble(folder: Path, rng: np.random.Generator) -> str:
    path = folder / str(rng.choice([WEIGHTS, CONFIG, PROCESSOR]))
    content = bytearray(path.read_bytes())
    for place in rng.integers(min(2000, len(content)), size=int(rng.choice([1, 4, 64]))):
        content[place] = rng.integers(256)
    path.write_bytes(content)
    return f"bytes of {path.name} changed"


def rename(folder: Path, rng: np.random.Generator) -> str:
    old = str(rng.choice([WEIGHTS, CONFIG, PROCESSOR]))
    new = str(rng.choice(["other.safetensors", "pytorch_model.bin", INDEX, "model.fp16.safetensors", "adapter.json"]))
    (folder / old).rename(folder / new)
    return f"{old} renamed to {new}"


def other_json(folder: Path, rng: np.random.Generator) -> str:
    name, text = str(rng.choice([CONFIG, PROCESSOR, INDEX])), str(rng.choice(JSONS))
    if name == INDEX:
        (folder / WEIGHTS).unlink()
    (folder / name).write_text(text)
    return f"{name} is {text!r}"


def other_architectures(folder: Path, rng: np.random.Generator) -> str:
    chosen = ARCHITECTURES[rng.integers(len(ARCHITECTURES))]
    content = json.loads((folder / CONFIG).read_text()) | {"architectures": chosen}
    if rng.random() < 0.3:
        del content["architectures"]
    (folder / CONFIG).write_text(json.dumps(content))
    return f"architectures {content.get('architectures', 'left out')!r}"


def other_processor(folder: Path, rng: np.random.Generator) -> str:
    chosen = PROCESSORS[rng.integers(len(PROCESSORS))]
    content = json.loads((folder / PROCESSOR).read_text()) | {"image_processor_type": chosen}
    (folder / PROCESSOR).write_text(json.dumps(content))
    return f"image_processor_type {chosen!r}"


def other_weights(folder: Path, rng: np.random.Generator) -> str:
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    chosen = [str(name) for name in rng.choice(names, int(rng.choice([1, 3, len(names)])), replace=False)]
    kind = str(rng.choice(["missing", "nan", "dtype", "shape", "scalar", "prefix", "no denoiser", "extra", "empty"]))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    for name in chosen:
        tensor = weights.pop(name)
        if kind == "nan":
            tensor = torch.full_like(tensor, float(rng.choice([float("nan"), float("inf"), 1e38])))
        if kind == "dtype":
            tensor = tensor.to(dtype)
        if kind == "shape":
            tensor = tensor.flatten()[: max(1, tensor.numel() // 2)].clone()
        if kind == "scalar":
            tensor = tensor.flatten()[0].clone()
        if kind != "missing":
            weights[f"module.{name}" if kind == "prefix" else name] = tensor
    if kind == "no denoiser":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("denoiser.", "decoder."))}
    if kind == "extra":
        weights |= {"decoder.extra": torch.zeros(3), "nim.layers.99.weight": torch.zeros(1)}
    save_file({} if kind == "empty" else weights, folder / WEIGHTS, {"format": "pt"})
    return f"weights: {kind} {dtype if kind == 'dtype' else ''} of {len(chosen)}, such as {chosen[0]}"


def shards(folder: Path, rng: np.random.Generator) -> str:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    as_bin = rng.random() < 0.3
    names, suffix = sorted(weights), "bin" if as_bin else "safetensors"
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for number in range(2):
        part = {name: weights[name] for name in names[number::2]}
        path = folder / f"part-{number}.{suffix}"
        torch.save(part, path) if as_bin else save_file(part, path, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, path.name)
    what = str(rng.choice(["whole", "one lost", "one cut", "wrong part", "too many", "not listed"]))
    first = names[0]
    if what == "one lost":
        path.unlink()
    if what == "one cut":
        path.write_bytes(path.read_bytes()[: int(rng.integers(2000))])
    if what == "wrong part":
        index["weight_map"][first] = path.name
    if what == "too many":
        index["weight_map"]["nim.no.such"] = path.name
    if what == "not listed":
        del index["weight_map"][first]
    (folder / ("pytorch_model.bin.index.json" if as_bin else INDEX)).write_text(json.dumps(index))
    return f"parts of {suffix}, {what}"


DAMAGES: list[Callable[[Path, np.random.Generator], str]] = [
    cut, scribble, rename, other_json, other_architectures, other_processor, other_weights, other_weights, shards,
]  # fmt: skip


@contextmanager
def warnings_of() -> Iterator[list[str]]:
    """What is told while something is loaded."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("transformers", "transformers_nim")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield told
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def stored_weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        index = folder / "pytorch_model.bin.index.json"
    stored = {}
    for name in set(json.loads(index.read_text())["weight_map"].values()):
        path = folder / name
        stored |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return stored


def assert_loaded_or_told(case: str, model: Any, folder: Path, told: list[str]) -> None:
    """All weights are those of the files, or it is told that some are not; what defends is never new."""
    stored = stored_weights(folder)

    def origins(name: str) -> list[str]:
        # Where a weight of this model may come from in a checkpoint of another kind.
        if isinstance(model, NIMModel):
            return [name, f"nim.{name}"]
        if isinstance(model, NIMForPreTraining):
            return [f"denoiser.{name}"] if any(key.startswith("denoiser.") for key in stored) else [name]
        return [name, name.removeprefix("denoiser."), name.removeprefix("nim.")]

    def is_there(name: str, tensor: torch.Tensor) -> bool:
        found = [stored[origin] for origin in origins(name) if origin in stored]
        return any(
            (other.shape == tensor.shape and torch.equal(other.to(tensor.dtype), tensor))
            or bool(tensor.isnan().any() and other.isnan().any())
            for other in found
        )  # fmt: skip

    new = [name for name, tensor in model.named_parameters() if not is_there(name, tensor)]
    assert not new or told, f"{case}: nobody is told that {new[:3]} are new"
    if isinstance(model, NIMForRobustImageClassification) and model.config.defense_sigma is not None:
        bad = [name for name in new if name.startswith("denoiser.")]
        assert not bad, f"{case}: a random denoiser is switched on"


def is_theirs(error: Exception) -> bool:
    """Whether it is an error of transformers that this package cannot reach, or says that the answer is no number."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, FloatingPointError) or not any("transformers_nim" in file for file in files):
        # `pipeline` loads the image processor before anything of this package runs.
        return True
    if isinstance(error, RuntimeError) and "mismatched_sizes" in str(error):
        return True
    return isinstance(error, (ValueError, OSError, ImportError)) and "transformers_nim" not in files[-1]


def test_damaged_checkpoints(folders, tmp_path):
    rng = np.random.default_rng(SEED + 4)
    picture = random_picture(1)
    classes = [NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification]
    classes += [AutoModel, AutoModelForPreTraining, AutoModelForImageClassification]
    counts = {"answered": 0, "refused": 0}
    for number in range(int(120 * CASES)):
        folder = tmp_path / str(number)
        source = folders[rng.integers(len(folders))]
        shutil.copytree(source, folder)
        named = json.loads((folder / CONFIG).read_text())["architectures"]
        done = DAMAGES[rng.integers(len(DAMAGES))](folder, rng)
        case = f"checkpoint {number}, {named}: {done}"
        cls = classes[rng.integers(len(classes))]
        loads: dict[str, Callable[[], Any]] = {
            cls.__name__: lambda cls=cls, folder=folder: cls.from_pretrained(folder),
            "evaluate": lambda folder=folder: load_with_processor(str(folder), torch.device("cpu"))[0],
        }
        for way, load in loads.items():
            with warnings_of() as told:
                model = attempt(f"{case}, {way}", load, is_theirs)
            counts["refused" if isinstance(model, Exception) else "answered"] += 1
            if not isinstance(model, Exception):
                assert_loaded_or_told(f"{case}, {way}", model, folder, told)
        attempt(f"{case}, start", lambda folder=folder: Start.read(str(folder)), is_theirs)
        attempt(f"{case}, convert", lambda folder=folder: save_bfloat16(str(folder), folder / "half"), is_theirs)
        ask = lambda folder=folder: pipeline("image-classification", model=str(folder))(picture, seed=0)  # noqa: E731
        answer = attempt(f"{case}, pipeline", ask, is_theirs)
        if not isinstance(answer, Exception):
            assert all(np.isfinite(one["score"]) for one in answer), case
        shutil.rmtree(folder)
    assert min(counts.values()) > 20 * CASES, counts
