# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that carry their code, in processes in which the package cannot be imported."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_model
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

import transformers_nim
from transformers_nim import NIMConfig, NIMForImageClassification, NIMImageProcessor
from transformers_nim.hub import write_card
from transformers_nim.hub.remote_code import code_files, remote_code_files


# Run first: whatever finds modules, the package is not there.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_nim":
            raise ModuleNotFoundError("No module named 'transformers_nim'", name=name)
sys.meta_path.insert(0, Block())
"""
LOAD = r"""
import json, sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining, pipeline
try:
    import transformers_nim
    raise SystemExit("the package is there")
except ModuleNotFoundError:
    pass
source, picture = sys.argv[1], Image.open(sys.argv[2])
answers = {}
for name, load in (("model", AutoModelForImageClassification), ("processor", AutoImageProcessor)):
    try:
        load.from_pretrained(source)
    except Exception as error:
        answers[f"untrusted {name}"] = f"{type(error).__name__}: {error}"
answers["executed"] = [name for name in sys.modules if name.startswith("transformers_modules")]
trust = {"trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained(source, **trust)
processor = AutoImageProcessor.from_pretrained(source, **trust)
answers["module"] = type(model).__module__
answers["names"] = [type(model).__name__, type(processor).__name__]
answers["logits"] = model(processor(picture, return_tensors="pt").pixel_values, sigma=None).logits.tolist()
pipe = pipeline("image-classification", model=source, sigma=25, seed=0, num_samples=2, **trust)
answers["pipeline"] = [type(pipe).__name__, pipe(picture), pipe(picture, sigma={"type": "constant", "value": 3})]
options = {"sigma": 25, "seed": 0, "certify": True, "n0": 4, "n": 20, "alpha": 0.3}
certifier = pipeline("image-classification", model=source, **options, **trust)
answers["certified"] = certifier(picture)[0]["radius"]
denoiser = AutoModelForPreTraining.from_pretrained(source, **trust)
answers["denoiser"] = [type(denoiser).__name__, sum(p.double().abs().sum().item() for p in denoiser.parameters())]
model.save_pretrained(sys.argv[3])
processor.save_pretrained(sys.argv[3])
again = pipeline("image-classification", model=sys.argv[3], sigma=25, seed=0, num_samples=2, **trust)
answers["again"] = [type(again).__name__, again(picture)]
assert "transformers_nim" not in sys.modules
print("\n" + json.dumps(answers))
"""


def run_without_package(environment, *arguments, script=LOAD):
    """What a script prints as JSON, in a process that cannot import the package."""
    environment = {name: value for name, value in environment.items() if name != "PYTHONSTARTUP"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + script, *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(robust_path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("with") / "nim-vit-tiny.1"
    shutil.copytree(robust_path, folder)
    for name, text in remote_code_files(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
    write_card(folder, name="nim-vit-tiny", summary="A test's model.")
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    random_picture(3).save(path)
    return path


def check(answers, robust_model, robust_path, picture):
    assert answers["untrusted model"].startswith("ValueError: ")
    assert "contains custom code which must be executed" in answers["untrusted model"]
    assert "`trust_remote_code=True`" in answers["untrusted model"]
    # transformers says no more of a processor than that it does not know it.
    assert answers["untrusted processor"].startswith("ValueError: ")
    assert answers["executed"] == [], "nothing is executed unasked"
    assert answers["module"].startswith("transformers_modules.")
    assert answers["names"] == ["NIMForRobustImageClassification", "NIMImageProcessor"]
    image = random_picture(3)
    pixels = NIMImageProcessor.from_config(robust_model.config)(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(torch.tensor(answers["logits"]), robust_model(pixels, sigma=None).logits)
    pipe = pipeline("image-classification", model=robust_path, sigma=25, seed=0, num_samples=2)
    name, drawn, other = answers["pipeline"]
    assert name == "NIMImageClassificationPipeline"
    for answer, expected in ((drawn, pipe(image)), (other, pipe(image, sigma=3))):
        assert [a["label"] for a in answer] == [e["label"] for e in expected]
        assert [a["score"] for a in answer] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    certifier = pipeline(
        "image-classification", model=robust_path, sigma=25, seed=0, certify=True, n0=4, n=20, alpha=0.3
    )
    assert answers["certified"] == pytest.approx(certifier(image)[0]["radius"])
    assert answers["certified"] > 0
    total = sum(p.double().abs().sum().item() for p in robust_model.denoiser.parameters())
    assert answers["denoiser"] == ["NIMForPreTraining", pytest.approx(total)]
    # What a model without the package saves has the pipeline, too.
    assert answers["again"] == [name, drawn]


def offline(tmp_path):
    return {**os.environ, "HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_OFFLINE": "1"}


def test_folder_without_the_package(folder, robust_model, robust_path, picture, tmp_path):
    answers = run_without_package(offline(tmp_path), folder, picture, tmp_path / "saved")
    check(answers, robust_model, robust_path, picture)


def test_repository_without_the_package(loopback_hub, folder, robust_model, robust_path, picture, tmp_path):
    loopback_hub.add("nim/nim-vit-tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
    environment = loopback_hub.environment(tmp_path)
    answers = run_without_package(environment, "nim/nim-vit-tiny", picture, tmp_path / "saved")
    check(answers, robust_model, robust_path, picture)


def test_plain_folder_without_the_package(robust_path, tmp_path):
    script = """
import json, sys
from transformers import AutoModelForImageClassification
try:
    AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
except ValueError as error:
    print(json.dumps(str(error)))
"""
    assert "model type `nim`" in run_without_package(offline(tmp_path), robust_path, script=script)


def test_with_the_package_its_own_classes_load(folder, tmp_path):
    assert AutoConfig.from_pretrained(folder).__class__ is NIMConfig
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is transformers_nim.NIMForRobustImageClassification
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is NIMImageProcessor
    pipe = pipeline("image-classification", model=str(folder), sigma=25, seed=0)
    assert type(pipe) is transformers_nim.NIMImageClassificationPipeline
    assert not [name for name in sys.modules if name.startswith("transformers_modules.nim")]
    # What it saves refers to no files that are not there.
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not saved.keys() & {"auto_map", "custom_pipelines"}
    assert "auto_map" not in (tmp_path / "preprocessor_config.json").read_text()


def test_files_are_the_modules_of_models():
    folder = Path(transformers_nim.__file__).parent / "model"
    files = code_files()
    assert files.keys() == {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
    for name, text in files.items():
        source = (folder / name).read_text()
        assert text.startswith(source)
        # What is added names files, and is never executed.
        added = ast.parse(text).body[len(ast.parse(source).body) :]
        assert all(isinstance(node, ast.If) and ast.unparse(node.test) == "False" for node in added)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert f"{node.module}.py" in files
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not any(module.startswith("transformers_nim") for module in modules), name


def test_entries_name_all_files(folder):
    """Early 5.x releases of transformers copy what an entry names, and nothing that those files name in turn."""
    files = code_files()
    config = json.loads((folder / "config.json").read_text())
    entries = [*config["auto_map"].values(), *(task["impl"] for task in config["custom_pipelines"].values())]
    for module in {entry.partition(".")[0] for entry in entries}:
        nodes = ast.walk(ast.parse(files[f"{module}.py"]))
        named = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {name.removesuffix(".py") for name in files} <= {*named, module}


def test_architecture_decides_the_classifier(tmp_path):
    model = tiny_model(NIMForImageClassification)
    save_with_processor(model, tmp_path)
    config = json.loads(remote_code_files(tmp_path)["config.json"])
    assert config["auto_map"]["AutoModelForImageClassification"] == "modeling_nim.NIMForImageClassification"
    assert not list(tmp_path.glob("*.py"))


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json: save a model"):
        remote_code_files(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="is of model_type 'vit'"):
        remote_code_files(tmp_path)
