# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Models and datasets that travel over HTTP, in processes that begin with an empty cache."""

import hashlib
import http.client
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from other_classifiers import MEAN, other_classifier

from transformers_nim import NIMForPreTraining
from transformers_nim.hub import write_card
from transformers_nim.metrics import metric_path


REPO = "nim/nim-vit-tiny"


def run(function: Callable, environment: Mapping[str, str], *arguments: object) -> Any:
    """What a function returns in a process of its own. It has to import all that it uses, and gets strings."""
    source = textwrap.dedent(inspect.getsource(function))
    script = f"import json, sys\n{source}\nprint(json.dumps({function.__name__}(*sys.argv[1:])))"
    # Away from the checkout, and with nobody there to answer a question.
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(environment["HF_HOME"]).parent,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(robust_path, tmp_path_factory) -> Path:
    """A checkpoint as it is published: weights, configs and a card."""
    folder = tmp_path_factory.mktemp("published")
    for file in Path(robust_path).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_card(folder, name="tiny", summary="A test's model.")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def upload(folder, repo):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo)
    first = api.upload_folder(repo_id=repo, folder_path=folder).oid
    return first == api.upload_folder(repo_id=repo, folder_path=folder).oid


def predict(folder, repo):
    import os

    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    import transformers_nim  # noqa: F401 - makes the Auto classes know NIM

    picture = Image.radial_gradient("L").convert("RGB")
    answers = []
    for source in (folder, repo):
        model = AutoModelForImageClassification.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
        # The Hub knows the task from the model card; without it, one has to say it.
        options = {} if source == repo and "HF_HUB_OFFLINE" not in os.environ else {"task": "image-classification"}
        pipe = pipeline(model=source, sigma=25, seed=0, **options)
        pixels = processor(picture, return_tensors="pt").pixel_values
        logits = model(pixels, sigma=None).logits.tolist()
        answers.append([type(model).__name__, type(processor).__name__, logits, pipe(picture)])
    return answers


@pytest.mark.slow
def test_pushed_loaded_and_kept(loopback_hub, folder, tmp_path):
    environment = loopback_hub.environment(tmp_path)
    assert run(upload, environment, folder, REPO), "a push of the same files is no commit"
    assert loopback_hub.files(REPO) == contents(folder)

    local, loaded = run(predict, environment, folder, REPO)
    assert local == loaded
    assert loaded[0] == "NIMForRobustImageClassification"
    downloads = [path for method, path, _ in loopback_hub.requests if method == "GET" and "/resolve/" in path]
    assert len(downloads) == len(set(downloads)), "what is in the cache is not downloaded again"
    assert any(path.endswith("/model.safetensors") for path in downloads)
    past = len(loopback_hub.requests)
    assert run(predict, {**environment, "HF_HUB_OFFLINE": "1"}, folder, REPO) == [local, loaded]
    assert len(loopback_hub.requests) == past


def load_before_and_after_a_push(repo, first):
    import torch

    from transformers_nim import NIMForRobustImageClassification, NIMImageProcessor

    old = NIMForRobustImageClassification.from_pretrained(repo)
    new = NIMForRobustImageClassification.from_pretrained(repo)
    with torch.no_grad():
        new.classifier.bias.add_(1)
    new.push_to_hub(repo)
    NIMImageProcessor.from_pretrained(repo).push_to_hub(repo)
    answers = {}
    for revision in ("main", first):
        loaded = NIMForRobustImageClassification.from_pretrained(repo, revision=revision)
        answers[revision] = [
            name
            for name, model in (("old", old), ("new", new))
            if all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
        ]
    return answers


@pytest.mark.slow
def test_pinned_revision_has_the_old_weights(loopback_hub, folder, tmp_path):
    first = loopback_hub.add(REPO, contents(folder))
    answers = run(load_before_and_after_a_push, loopback_hub.environment(tmp_path), REPO, first)
    assert answers == {"main": ["new"], first: ["old"]}
    before, after = contents(folder), loopback_hub.files(REPO)
    assert before["model.safetensors"] != after["model.safetensors"]
    assert json.loads(before["preprocessor_config.json"]) == json.loads(after["preprocessor_config.json"])


def errors_of_loading(repo):
    from transformers import AutoImageProcessor

    from transformers_nim import NIMForRobustImageClassification

    def error_of(load, *arguments, **options):
        try:
            return f"no error, but {load(*arguments, **options)}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    load = NIMForRobustImageClassification.from_pretrained
    return {
        "missing repo": error_of(load, "nim/none"),
        "missing processor": error_of(AutoImageProcessor.from_pretrained, "nim/none"),
        "missing revision": error_of(load, repo, revision="v9"),
        "missing weights": error_of(load, "nim/no-weights"),
        "missing config": error_of(load, "nim/no-config"),
        "missing shard": error_of(load, "nim/no-shard"),
        "tampered header": error_of(load, "nim/tampered"),
        "pickle": error_of(load, "nim/pickle", use_safetensors=False),
        "half a file": error_of(load, "nim/half"),
        "half a download": error_of(load, "nim/broken"),
    }


def test_errors_are_those_of_the_library(loopback_hub, folder, tmp_path):
    files = contents(folder)
    weights = files["model.safetensors"]
    loopback_hub.add(REPO, files)
    loopback_hub.add("nim/no-weights", {"config.json": files["config.json"]})
    loopback_hub.add("nim/no-config", {"model.safetensors": weights})
    index = json.dumps({"metadata": {}, "weight_map": {"nim.embeddings.cls_token": "model-1-of-1.safetensors"}})
    sharded = {name: content for name, content in files.items() if name != "model.safetensors"}
    loopback_hub.add("nim/no-shard", {**sharded, "model.safetensors.index.json": index.encode()})
    # The length of the header, which comes first, is beyond the end of the file.
    loopback_hub.add("nim/tampered", {**files, "model.safetensors": b"\xff" * 8 + weights[8:]})
    # Whoever unpickles it ends the process.
    evil = b"cos\n_exit\n(I7\ntR."
    loopback_hub.add("nim/pickle", {**sharded, "pytorch_model.bin": evil})
    loopback_hub.add("nim/half", {**files, "model.safetensors": weights[: len(weights) // 2]})
    # Other bytes than REPO's, because equal contents are stored once.
    loopback_hub.add("nim/broken", {**files, "model.safetensors": weights + b"\0"})
    loopback_hub.truncate("nim/broken", "model.safetensors")
    errors = run(errors_of_loading, loopback_hub.environment(tmp_path), REPO)
    for name, expected in (
        ("missing repo", "OSError: nim/none is not a local folder and is not a valid model identifier"),
        ("missing processor", "OSError: nim/none is not a local folder and is not a valid model identifier"),
        ("missing revision", "OSError: v9 is not a valid git identifier"),
        ("missing weights", "OSError: nim/no-weights does not appear to have a file named"),
        ("missing config", "OSError: nim/no-config is no checkpoint: it has no config.json"),
        ("missing shard", "OSError: nim/no-shard does not appear to have a file named model-1-of-1.safetensors"),
        ("tampered header", "OSError: the weights in "),
        ("pickle", "OSError: the weights in "),
        ("half a file", "OSError: the weights in "),
        ("half a download", f"OSError: Consistency check failed: file should be of size {len(weights) + 1}"),
    ):
        assert errors[name].startswith(expected), f"{name}: {errors[name]}"
    assert "weights_only" not in errors["pickle"]


def test_hf_download(loopback_hub, folder, tmp_path):
    first = loopback_hub.add(REPO, contents(folder))
    loopback_hub.add(REPO, {"README.md": b"changed"})
    environment = {**loopback_hub.environment(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "hf"), "download", REPO, "--local-dir", str(tmp_path / "here")]
    for revision, card in (("main", b"changed"), (first, contents(folder)["README.md"])):
        done = subprocess.run(
            [*command, "--revision", revision], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        files = contents_of_files(tmp_path / "here")
        assert files == {**contents(folder), "README.md": card}
    assert loopback_hub.token not in done.stdout + done.stderr


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def push_card_and_pin(repo, first):
    import inspect

    from huggingface_hub import ModelCard
    from transformers import pipeline

    import transformers_nim  # noqa: F401 - makes the Auto classes know NIM

    card = ModelCard.load(repo)
    card.data.tags = [*card.data.tags, "changed"]
    if "constants.ENDPOINT" not in inspect.getsource(ModelCard.validate):
        # Before its release 2, huggingface_hub asks huggingface.co, whatever the endpoint is.
        ModelCard.validate = lambda self, repo_type=None: None
    card.push_to_hub(repo)
    pipe = pipeline(model=repo, revision=first, sigma=25, seed=0)
    return [
        ModelCard.load(repo).data.tags,
        type(pipe).__name__,
        pipe.model.config.defense_sigma["value"],
    ]


@pytest.mark.slow
def test_card_and_pinned_pipeline(loopback_hub, folder, tmp_path):
    first = loopback_hub.add(REPO, contents(folder))
    config = contents(folder)["config.json"].replace(b'"value": 70', b'"value": 33')
    assert config != contents(folder)["config.json"]
    loopback_hub.add(REPO, {"config.json": config})
    tags, kind, sigma = run(push_card_and_pin, loopback_hub.environment(tmp_path), REPO, first)
    assert tags == ["transformers-nim", "nim", "changed"]
    assert (kind, sigma) == ("NIMImageClassificationPipeline", 70)


def defend_a_published_classifier(denoiser, classifier, repo):
    import torch
    from transformers import AutoModelForImageClassification, pipeline

    from transformers_nim import NIMForRobustImageClassification, NIMImageProcessor

    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, num_samples=2)
    model.push_to_hub(repo)
    NIMImageProcessor.from_config(model.config).push_to_hub(repo)
    loaded = AutoModelForImageClassification.from_pretrained(repo)
    same = loaded.state_dict().keys() == model.state_dict().keys() and all(
        torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    pipe = pipeline("image-classification", model=repo, sigma=10, seed=0)
    return same, type(loaded.classifier_model).__name__, pipe.model.config.num_samples


@pytest.mark.slow
def test_a_classifier_of_the_hub_behind_a_denoiser_of_the_hub(loopback_hub, tmp_path):
    classifier, processor = other_classifier("convnext")
    for part, name in (
        (NIMForPreTraining(tiny_config()), "denoiser"),
        (classifier, "convnext"),
        (processor, "convnext"),
    ):
        part.save_pretrained(tmp_path / name)
    for name in ("denoiser", "convnext"):
        loopback_hub.add(f"nim/{name}", contents(tmp_path / name))
    environment = loopback_hub.environment(tmp_path)
    answer = run(defend_a_published_classifier, environment, "nim/denoiser", "nim/convnext", "nim/defended")
    assert answer == [True, "ConvNextForImageClassification", 2]
    given = json.loads(loopback_hub.files("nim/defended")["config.json"])["classifier_input"]
    # Of its own image processor, which was on the Hub beside it.
    assert (given["size"], given["image_mean"]) == ([48, 48], pytest.approx(MEAN, abs=1e-6))


def load_metrics():
    import evaluate

    answers = {}
    for name, inputs in (
        ("robust_accuracy", {"predictions": [[1, 1], [0, 2]], "references": [1, 2]}),
        ("certified_accuracy", {"predictions": [1], "certified_radii": [0.5], "references": [1]}),
    ):
        answers[name] = evaluate.load(f"nim/{name}").compute(**inputs)[name.replace("robust_", "")]
    return answers


def load_metric_without_the_package():
    import sys

    import evaluate

    sys.modules["transformers_nim"] = None
    try:
        evaluate.load("nim/robust_accuracy")
    except ImportError as error:
        return str(error)


@pytest.mark.slow
def test_metric_spaces(loopback_hub, tmp_path):
    for name in ("robust_accuracy", "certified_accuracy"):
        files = {path.name: path.read_bytes() for path in Path(metric_path(name)).iterdir() if path.is_file()}
        loopback_hub.add(f"nim/{name}", files, repo_type="space")
    (tmp_path / "other").mkdir()
    answers = run(load_metrics, loopback_hub.environment(tmp_path))
    assert answers["robust_accuracy"] == 0.75
    assert answers["certified_accuracy"] == [1, 1, 1, 0, 0]
    # It is not part of the Space: where it is not installed, evaluate names it.
    assert "transformers_nim" in run(load_metric_without_the_package, loopback_hub.environment(tmp_path / "other"))


def change_files():
    from pathlib import Path

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def status_of(write, *arguments, **options):
        try:
            write(*arguments, **options)
        except HfHubHTTPError as error:
            return error.response.status_code

    api = HfApi()
    answers = {"user": api.whoami()["name"], "create": status_of(api.create_repo, "nim/x")}
    answers["create again"] = status_of(api.create_repo, "nim/x")
    first = api.upload_file(repo_id="nim/x", path_or_fileobj=b"1", path_in_repo="a.txt").oid
    api.upload_file(repo_id="nim/x", path_or_fileobj=b"2", path_in_repo="b c/\u00fc.txt")
    answers["tree"] = [entry.path for entry in api.list_repo_tree("nim/x")]
    answers["deep tree"] = [entry.path for entry in api.list_repo_tree("nim/x", recursive=True)]
    answers["paths"] = [entry.path for entry in api.get_paths_info("nim/x", ["a.txt", "b c", "nothing"])]
    answers["content"] = Path(api.hf_hub_download("nim/x", "b c/\u00fc.txt")).read_text()
    answers["late"] = status_of(api.delete_file, "a.txt", "nim/x", parent_commit=first)
    for name, token in (("no token", False), ("wrong token", "hf_wrong")):
        other = HfApi(token=token)
        answers[name] = [
            status_of(other.create_repo, "nim/y"),
            status_of(other.upload_file, repo_id="nim/x", path_or_fileobj=b"3", path_in_repo="a.txt"),
            status_of(other.delete_file, "a.txt", "nim/x"),
            status_of(other.list_repo_files, "nim/x"),
        ]
    api.delete_folder("b c", "nim/x")
    api.create_repo("nim/x", repo_type="space", space_sdk="gradio")
    api.upload_file(repo_id="nim/x", path_or_fileobj=b"demo = 1", path_in_repo="app.py", repo_type="space")
    return answers


def test_writes(loopback_hub, tmp_path):
    assert run(change_files, loopback_hub.environment(tmp_path)) == {
        "user": "nim",
        "create": None,
        "create again": 409,
        "tree": ["b c", "a.txt"],
        "deep tree": ["b c", "a.txt", "b c/\u00fc.txt"],
        "paths": ["b c", "a.txt"],
        "content": "2",
        "late": 412,
        "no token": [401, 401, 401, None],
        "wrong token": [401, 401, 401, 401],
    }
    assert loopback_hub.files("nim/x") == {"a.txt": b"1"}
    assert loopback_hub.files("nim/x", repo_type="space") == {"app.py": b"demo = 1"}


def dataset_there_and_back(repo):
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image, load_dataset

    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": list(pictures), "label": [0, 1] * 3}
    Dataset.from_dict(columns, features=features).push_to_hub(repo)
    answers = {}
    for streaming in (False, True):
        dataset = load_dataset(repo, split="train", streaming=streaming)
        assert dataset.features == features
        rows = list(dataset)
        assert np.array_equal([np.array(row["image"]) for row in rows], pictures)
        answers[str(streaming)] = [row["label"] for row in rows]
    return answers


@pytest.mark.slow
def test_dataset(loopback_hub, tmp_path):
    answers = run(dataset_there_and_back, loopback_hub.environment(tmp_path), "nim/pets")
    assert answers == {"False": [0, 1] * 3, "True": [0, 1] * 3}
    files = loopback_hub.files("nim/pets", repo_type="dataset")
    assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet"]


def test_protocol_of_downloads(loopback_hub):
    content = bytes(range(100))
    old = loopback_hub.add("nim/x", {"a/b.bin": content, "c.txt": b"old"})
    new = loopback_hub.add("nim/x", {"c.txt": b"new"})
    client = http.client.HTTPConnection(loopback_hub.endpoint.removeprefix("http://"))

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        client.request(method, path, headers=headers)
        response = client.getresponse()
        return response.status, response.headers, response.read()

    for wanted, expected in (
        ("10-19", content[10:20]),
        ("90-", content[90:]),
        ("-5", content[-5:]),
        ("90-200", content[90:]),
    ):
        status, headers, body = ask("/nim/x/resolve/main/a/b.bin", Range=f"bytes={wanted}")
        assert (status, body) == (206, expected)
        start = content.index(expected)
        assert headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/100"
    assert ask("/nim/x/resolve/main/a/b.bin", Range="bytes=100-")[0] == 416

    status, headers, body = ask("/nim/x/resolve/main/a%2Fb.bin", method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "100")
    assert headers["ETag"] == headers["X-Linked-ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    for revision, commit, text in ((old, old, b"old"), (new, new, b"new"), ("main", new, b"new")):
        status, headers, body = ask(f"/nim/x/resolve/{revision}/c.txt")
        assert (status, headers["X-Repo-Commit"], body) == (200, commit, text)

    for path, code in (
        ("/nim/y/resolve/main/c.txt", "RepoNotFound"),
        ("/datasets/nim/x/resolve/main/c.txt", "RepoNotFound"),
        ("/api/models/none", "RepoNotFound"),
        ("/nim/x/resolve/v9/c.txt", "RevisionNotFound"),
        ("/api/models/nim/x/revision/v9", "RevisionNotFound"),
        ("/nim/x/resolve/main/d.txt", "EntryNotFound"),
        ("/api/models/nim/x/tree/main/d", "EntryNotFound"),
        ("/api/unheard-of", None),
    ):
        status, headers, _ = ask(path)
        assert (status, headers["X-Error-Code"]) == (404, code), path
    assert loopback_hub.requests[-1] == ("GET", "/api/unheard-of", 404)
    assert ask("/api/repos/create", method="POST")[0] == 401


def test_environment_has_nothing_of_the_user(loopback_hub, monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("HF_TOKEN", "theirs")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = loopback_hub.environment(tmp_path)
    assert environment["SOMETHING_ELSE"] == "kept"
    assert "theirs" not in environment.values()
    assert Path(environment["HF_HOME"]).is_relative_to(tmp_path)
