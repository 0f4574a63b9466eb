# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Importing the package: what transformers knows afterwards, in any order of imports and from several threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_nim


PACKAGE = Path(transformers_nim.__file__).parent


def start_python(code: str, *arguments: str, cwd) -> subprocess.Popen:
    path = os.pathsep.join([str(cwd), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )


def output_of(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def run_python(code: str, *arguments: str, cwd) -> str:
    return output_of(start_python(code, *arguments, cwd=cwd))


CHECK_REGISTRATION = """
import transformers_nim as nim
for auto, cls in [
    (AutoConfig, nim.NIMConfig),
    (AutoModelForImageClassification, nim.NIMForRobustImageClassification),
    (AutoImageProcessor, nim.NIMImageProcessor),
    (AutoModel, nim.NIMModel),
    (AutoModelForPreTraining, nim.NIMForPreTraining),
]:
    loaded = auto.from_pretrained(path)
    assert type(loaded) is cls, (auto, type(loaded))
config = AutoConfig.for_model("nim", num_labels=7)
assert type(config) is nim.NIMConfig and config.num_labels == 7
pipe = pipeline("image-classification", model=path)
assert type(pipe) is nim.NIMImageClassificationPipeline, type(pipe)
from PIL import Image
print(len(pipe(Image.new("RGB", (40, 40)), sigma=25, seed=0)), "answers")
"""
THEIR_IMPORTS = """
from transformers import pipeline, AutoConfig, AutoModelForImageClassification, AutoImageProcessor
from transformers import AutoModel, AutoModelForPreTraining
"""


@pytest.mark.parametrize("imports", [f"import transformers_nim\n{THEIR_IMPORTS}", THEIR_IMPORTS])
def test_import_before_and_after_transformers(robust_path, tmp_path, imports):
    code = f"import sys\npath = sys.argv[1]\n{imports}\n{CHECK_REGISTRATION}"
    assert run_python(code, robust_path, cwd=tmp_path) == "5 answers\n"


IMPORT_FIRST = """
import importlib, sys
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_nim"]:
        del sys.modules[name]
    importlib.import_module(f"transformers_nim.{module}")
"""


def test_a_module_of_any_wing_can_be_imported_first(tmp_path):
    wings = {path.parent: path for path in PACKAGE.glob("*/*.py") if path.stem not in ("__init__", "__main__")}
    modules = ["model.layers_nim", *(f"{wing.name}.{path.stem}" for wing, path in wings.items())]
    assert run_python(IMPORT_FIRST, *modules, cwd=tmp_path) == ""


ASK_AT_ONCE = """
import sys, threading
import transformers, transformers_nim
names = sys.argv[1:]
barrier, found = threading.Barrier(len(names)), []

def ask(name):
    barrier.wait()
    found.append(getattr(transformers, name))

threads = [threading.Thread(target=ask, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found))
"""


def test_threads_that_ask_transformers_at_once(tmp_path):
    """They would wait for each other if an import of a module of transformers registered models on its way."""
    names = ["AutoImageProcessor", "AutoModelForImageClassification", "pipeline", "AutoConfig"]
    processes = [start_python(ASK_AT_ONCE, *some, cwd=tmp_path) for some in (names[:2], names)]
    assert [output_of(process) for process in processes] == ["2\n", "4\n"]


def test_pipeline_class_that_someone_else_registered(robust_path, vit_path, tmp_path):
    (tmp_path / "someone.py").write_text("""
from transformers import AutoModelForImageClassification, ImageClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY


class SomeonesPipeline(ImageClassificationPipeline):
    def _sanitize_parameters(self, shout=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward, {**postprocess, **({} if shout is None else {"shout": shout})}

    def postprocess(self, model_outputs, shout=False, **kwargs):
        answers = super().postprocess(model_outputs, **kwargs)
        return [answer["label"] + ("!" if shout else "") for answer in answers]


PIPELINE_REGISTRY.register_pipeline(
    "image-classification", SomeonesPipeline, pt_model=AutoModelForImageClassification, type="image"
)
""")
    code = """
import sys
robust, vit = sys.argv[1:]
from someone import SomeonesPipeline
import transformers_nim
from PIL import Image
from transformers import pipeline
ours = pipeline("image-classification", model=robust)
assert type(ours) is transformers_nim.NIMImageClassificationPipeline, type(ours)
theirs = pipeline("image-classification", model=vit, shout=True)
assert type(theirs) is SomeonesPipeline, type(theirs)
print(sorted(theirs(Image.new("RGB", (40, 40)))))
theirs.save_pretrained("saved")
"""
    assert run_python(code, robust_path, vit_path, cwd=tmp_path) == "['LABEL_0!', 'LABEL_1!', 'LABEL_2!']\n"
    # Their pipeline still knows how it was registered, and says so in a saved model.
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["custom_pipelines"]["image-classification"]["impl"] == "someone.SomeonesPipeline"
