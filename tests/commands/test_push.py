# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publishing over HTTP, as a user does, and what is refused."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from transformers_nim import NIMForRobustImageClassification
from transformers_nim.commands.push import main
from transformers_nim.hub import publication as publications, upload as publishing, write_card
from transformers_nim.hub.publication import prepare
from transformers_nim.hub.remote_code import remote_code_files
from transformers_nim.hub.training_results import create_repository
from transformers_nim.robustness.classifiers import model_hash
from transformers_nim.utils.cli import run_command


SCRIPT = Path(__file__).parent.parent.parent / "examples" / "push_checkpoint.py"
MODEL_CARDS = Path(__file__).parent.parent.parent / "model_cards"
REPO = "nim/nim-vit-tiny"
# Nobody's.
TOKEN = "ghp_" + "aB3" * 12
RESULTS = {
    "protocol": "Certified somehow.",
    "settings": {"dataset": "digits", "split": "test", "n0": 100, "n": 1000, "alpha": 0.001, "sequential": False},
    "curves": [
        {
            "sigma": 63.75,
            "sigma_01": 0.25,
            "radii": [0.5],
            "certified_accuracy": [0.415],
            "certified_accuracy_low": [0.33],
            "certified_accuracy_high": [0.5],
            "abstained": 0.125,
            "average_certified_radius": 0.3,
            "mean_num_draws": 1100,
        }
    ],
}


def results_of(path, dtype="float32") -> dict:
    """What a command writes that measures the model at a path."""
    model = NIMForRobustImageClassification.from_pretrained(path, dtype=getattr(torch, dtype))
    return {**RESULTS, "settings": {**RESULTS["settings"], "dtype": dtype, "model_hash": model_hash(model)}}


@pytest.fixture(scope="session")
def results(robust_path) -> dict:
    return results_of(robust_path)


@pytest.fixture
def folder(robust_path, results, tmp_path) -> Path:
    folder = tmp_path / "outputs" / "tiny"
    shutil.copytree(robust_path, folder)
    (folder / "results.json").write_text(json.dumps(results))
    write_card(folder, name="nim-vit-tiny", summary="A test's model.", results=["results.json"])
    # What training leaves beside it.
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.bin").write_bytes(b"x")
    return folder


@pytest.fixture
def push(loopback_hub, monkeypatch, tmp_path, capsys):
    """Run the command line in this process, and return its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **hub) -> subprocess.CompletedProcess:
        loopback_hub.lead_here(monkeypatch, tmp_path, **hub)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(lambda: main([str(argument) for argument in arguments]))
        return subprocess.CompletedProcess(arguments, stopped.value.code, *capsys.readouterr())

    return run


def published(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_without_push_nothing_is_sent(loopback_hub, push, folder):
    done = push("outputs/tiny", "--repo_id", REPO, "--private")
    assert done.returncode == 0, done.stderr
    assert {method for method, _, _ in loopback_hub.requests} == {"GET"}
    assert ("models", REPO) not in loopback_hub.storage.repos
    for text in (
        f"to: {REPO}, branch main (private if it is new)",
        "A test's model.",
        "sigma 63.75, radius 0.5: 0.415",
    ):
        assert text in done.stdout
    for name, content in published(folder).items():
        assert f"{len(content):,}  {name}" in done.stdout
    assert "optimizer.bin" not in done.stdout
    assert "nothing was sent; pass --push to send it" in done.stdout


@pytest.mark.slow
def test_push_and_compare(loopback_hub, folder, tmp_path):
    """As users start it."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "--repo_id", REPO, "--push"],
        env={**loopback_hub.environment(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert loopback_hub.files(REPO) == published(folder)
    assert "published and compared: nim/nim-vit-tiny at " in done.stdout
    fetched = [path for method, path, _ in loopback_hub.requests if method == "GET" and "/resolve/" in path]
    assert len(fetched) == len(published(folder)), "everything is downloaded again"
    assert loopback_hub.token not in done.stdout + done.stderr


def test_with_code(loopback_hub, push, folder):
    before = published(folder)
    done = push(folder, "--repo_id", REPO, "--push", "--with_code")
    assert done.returncode == 0, done.stderr
    assert published(folder) == before, "the folder stays as it is"
    files = loopback_hub.files(REPO)
    assert {"modeling_nim.py", "noise.py"} < files.keys()
    assert "auto_map" in json.loads(files["config.json"])
    assert "trust_remote_code" in files["README.md"].decode()
    assert ModelCard(files["README.md"].decode()).data.eval_results


def test_revision_is_a_branch(loopback_hub, push, folder):
    done = push(folder, "--repo_id", REPO, "--push", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    assert loopback_hub.files(REPO) == {}
    assert loopback_hub.files(REPO, revision="v1") == published(folder)


def test_what_arrives_broken_is_told(loopback_hub, push, folder):
    loopback_hub.corrupt = "results.json"
    done = push(folder, "--repo_id", REPO, "--push")
    assert done.returncode == 1
    assert "differs from" in done.stderr
    assert "in results.json; upload again" in done.stderr
    assert "published" not in done.stdout


STALE = {
    "pytorch_model.bin": b"x",
    "evil.py": b"x",
    "modeling_nim.py": b"x",
    ".eval_results/old.yaml": b"x",
}


def test_what_is_on_the_hub_alone_is_shown_and_removed(loopback_hub, push, folder):
    before = loopback_hub.add(REPO, {**STALE, "README.md": b"old", ".gitattributes": b"kept"})
    done = push(folder, "--repo_id", REPO)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split("on the Hub but not in the folder, to be removed:\n")[1].split("\n\n")[0]
    assert shown.splitlines() == [f"- {name}" for name in sorted(STALE)]
    assert loopback_hub.files(REPO) == loopback_hub.files(REPO, revision=before)
    done = push(folder, "--repo_id", REPO, "--push")
    assert done.returncode == 0, done.stderr
    assert loopback_hub.files(REPO) == {**published(folder), ".gitattributes": b"kept"}
    commits = loopback_hub.storage.repo("models", REPO).history
    assert commits[-2].sha == before, "one commit adds and removes"


def test_a_new_branch_does_not_keep_what_main_has(loopback_hub, push, folder):
    loopback_hub.add(REPO, STALE)
    arguments = (folder, "--repo_id", REPO.split("/")[1], "--revision", "v1")
    assert "- evil.py\n" in push(*arguments).stdout
    done = push(*arguments, "--push")
    assert done.returncode == 0, done.stderr
    assert loopback_hub.files(REPO) == STALE
    assert loopback_hub.files(REPO, revision="v1") == published(folder)


def test_files_that_only_one_side_has_differ(folder, monkeypatch):
    class Api:
        def __init__(self, token=None):
            pass

        def list_repo_files(self, repo_id, revision):
            return [*(name for name in names if name != "config.json"), "evil.py", ".gitattributes"]

        def hf_hub_download(self, repo_id, name, revision, cache_dir):
            return shutil.copy(folder / name, cache_dir)

    publication = prepare(folder, REPO)
    names = list(publication.files)
    monkeypatch.setattr(publishing, "HfApi", Api)
    assert publishing.compare(publication, REPO, "main") == ["config.json", "evil.py"]


def one_sentence(done, *parts):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.splitlines()[-1]


def test_tokens_that_do_not_work(loopback_hub, push, folder):
    arguments = (folder, "--repo_id", REPO, "--push")
    done = push(*arguments, token="")
    one_sentence(done, "401", "nim/nim-vit-tiny", "run `hf auth login`", "--token")
    done = push(*arguments, "--token", "hf_wrong")
    one_sentence(done, "401", "run `hf auth login`", "--token")
    done = push(folder, "--repo_id", "nim-vit-tiny", token="")
    one_sentence(done, "run `hf auth login`", "--token")
    assert loopback_hub.storage.repos == {}


def test_a_hub_that_is_down(push, folder, monkeypatch):
    # The client tries again after a while.
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = push(folder, "--repo_id", REPO, "--push", endpoint="http://127.0.0.1:9")
    one_sentence(done, "cannot be reached at http://127.0.0.1:9 (ConnectError)", "check the network, and HF_ENDPOINT")


@pytest.mark.parametrize("repo_id", [REPO, "nim-vit-tiny"])
def test_a_dry_run_needs_no_network_and_waits_for_none(push, folder, monkeypatch, repo_id):
    def refuse(_):
        raise AssertionError("it waits to try again")

    monkeypatch.setattr("time.sleep", refuse)
    done = push(folder, "--repo_id", repo_id, endpoint="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "would be removed: the Hub cannot be reached at http://127.0.0.1:9 (ConnectError)" in done.stdout
    assert done.stdout.endswith("nothing was sent; pass --push to send it\n")


MALFORMED = {
    "README.md": ("---\na: [\n---\nx", "README.md cannot be read as YAML"),
    ".eval_results/x.yaml": ("a: [", ".eval_results/x.yaml cannot be read as YAML"),
    "card.json": ("{", "card.json cannot be read as JSON (Expecting property name"),
    "config.json": ("[]", "config.json must hold an object, not list"),
    "results.json": ('{"settings": {}, "curves": [{}], "protocol": ""}', "results.json"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files(folder, capsys, name):
    content, expected = MALFORMED[name]
    write(folder, name, content.encode())
    assert main([str(folder), "--repo_id", REPO, "--push"]) == 1
    assert expected in capsys.readouterr().err


def test_weights_of_another_model(folder):
    tensors = load_file(folder / "model.safetensors")
    first, second, *_ = sorted(tensors)
    wrong = {name: tensor for name, tensor in tensors.items() if name != first}
    wrong |= {second: torch.zeros(3, 7), "extra.weight": torch.zeros(1)}
    save_file(wrong, folder / "model.safetensors")
    problems = prepare(folder, REPO).problems
    assert len(problems) == 3
    for problem, end in zip(
        problems,
        (
            f"1 missing: {first}. Save model and configuration together",
            "1 unexpected: extra.weight. Save model and configuration together",
            f"1 of other shapes: {second}: [3, 7], not {list(tensors[second].shape)}. Save model and configuration"
            " together",
        ),
        strict=True,
    ):
        assert problem.startswith("the weights are not those of the NIMForRobustImageClassification that config.json")
        assert problem.endswith(end)


def test_weights_in_parts(folder):
    tensors = load_file(folder / "model.safetensors")
    first, *rest = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": [first], "model-00002-of-00002.safetensors": rest}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (both,) = prepare(folder, REPO).problems
    assert both.startswith("there are both model.safetensors and model.safetensors.index.json")
    (folder / "model.safetensors").unlink()
    assert prepare(folder, REPO).problems == []
    del index["weight_map"][rest[0]]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (unlisted,) = prepare(folder, REPO).problems
    assert unlisted == f"model.safetensors.index.json and the files that it names differ in {rest[0]}"
    del index["weight_map"][first]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"1 missing: {first}." in "\n".join(prepare(folder, REPO).problems)


def change_results(folder):
    results = folder / "results.json"
    results.write_text(results.read_text().replace("0.415", "0.615"))


def change_card(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("41.5", "61.5"))


def token_in(name):
    return lambda folder: (folder / name).write_text(f'{{"token": "{TOKEN}"}}')


def add_to(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def link_in_a_circle(folder):
    (folder / "a.txt").symlink_to("b.txt")
    (folder / "b.txt").symlink_to("a.txt")


REFUSED = {
    "card": (change_card, "61.5 [33.0, 50.0]"),
    "results": (change_results, "61.5 [33.0, 50.0]"),
    "no card": (lambda folder: (folder / "card.json").unlink(), "has no card.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "preprocessor_config.json is missing",
    ),
    "no results": (lambda folder: (folder / "results.json").unlink(), "results.json is missing"),
    "half of the weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
        "model.safetensors cannot be read",
    ),
    "pickle": (lambda folder: (folder / "extra.pt").write_bytes(b"x"), "extra.pt: such files can execute code"),
    "bin": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: such files"),
    "pkl": (lambda folder: (folder / "a.pkl").write_bytes(b"x"), "a.pkl: such files"),
    "token": (token_in("notes.json"), "notes.json, line 1: this looks like a secret (GitHub Token)"),
    "path": (
        lambda folder: (folder / "log.jsonl").write_text('{"dir": "/home/me/data"}'),
        "/home/me/data is an absolute",
    ),
    "windows path": (lambda folder: (folder / "a.txt").write_text("C:\\Users\\me"), "C:\\Users is an absolute path"),
    "code of another repository": (
        lambda folder: add_to(folder / "config.json", auto_map={"AutoModel": "evil/repo--modeling_nim.NIMModel"}),
        "config.json names code that is not transformers-nim's (evil/repo--modeling_nim.NIMModel)",
    ),
    "code of another file": (
        lambda folder: add_to(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"}),
        "preprocessor_config.json names code that is not transformers-nim's (evil.Processor)",
    ),
    "code of a part": (
        lambda folder: add_to(folder / "config.json", classifier_config={"auto_map": {"AutoModel": "a/b--c.D"}}),
        "config.json names code that is not transformers-nim's (a/b--c.D)",
    ),
    "another pipeline": (
        lambda folder: add_to(folder / "config.json", custom_pipelines={"image-classification": {"impl": "evil.P"}}),
        "config.json names code that is not transformers-nim's (evil.P)",
    ),
    "line break": (
        lambda folder: (folder / "a\nREADME.md").write_text("x"),
        r"'a\nREADME.md' has characters in its name that cannot be shown",
    ),
    "terminal": (
        lambda folder: (folder / "a\x1b[2J.md").write_text("x"),
        r"'a\x1b[2J.md' has characters in its name that cannot be shown",
    ),
    "links in a circle": (link_in_a_circle, "a.txt is a link that leads nowhere or in a circle; remove it"),
    "link to nothing": (
        lambda folder: (folder / "a.txt").symlink_to("b.txt"),
        "a.txt is a link that leads nowhere or in a circle; remove it",
    ),
    "foreign code": (lambda folder: (folder / "modeling_x.py").write_text("1"), "modeling_x.py is no file of"),
}


def write(folder, name, content=b"x"):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.pth.tar", "is of no kind"), ("x.PT", "is of no kind"), ("x.npz", "is of no kind"),
        ("x.h5", "is of no kind"), ("run.log", "is of no kind"), ("a/x.ipynb", "is of no kind"),
        ("x", "is of no kind"), ("x.pth", ": such files can"), (".env", "is hidden"), ("a/.env.txt", "is hidden"),
        (".ssh/key.txt", "is hidden"), (".eval_results/.x.yaml", "is hidden"), (".eval_results/a.pt", ": such files"),
        (".eval_results/x.so", "is hidden"), (".gitignore", "is hidden"), (".github/a.yml", "is hidden"),
    ],
)  # fmt: skip
def test_other_kinds_of_files_are_refused(folder, name, reason):
    write(folder, name)
    (problem,) = prepare(folder, REPO).problems
    assert problem.startswith(f"{name}{reason if reason[0] == ':' else ' ' + reason}")


def test_kinds_that_are_published_and_skipped(folder):
    before = prepare(folder, REPO).files.keys()
    new = {"a.csv", "a.txt", "b/c.yml", "p.png", "p.jpg", ".eval_results/x.yaml", ".gitattributes", "LICENSE"}
    skipped = (".git/config", ".cache/x.pt", "a/.git/x", "a/__pycache__/x.pyc")
    for name in (*new, *skipped):
        write(folder, name)
    publication = prepare(folder, REPO)
    assert publication.problems == []
    assert publication.files.keys() - before == new


def test_links_that_leave_the_folder(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    (folder / "in.txt").symlink_to("results.json")
    assert prepare(folder, REPO).problems == []
    for name, target in (("out.txt", tmp_path / "secret.txt"), ("up", ".."), ("lost.txt", tmp_path / "none")):
        (folder / name).symlink_to(target)
    problems = prepare(folder, REPO).problems
    assert [problem.split(" is a link")[0] for problem in problems] == ["lost.txt", "out.txt", "up"]


def test_texts_and_metadata_are_read(folder):
    secret = f"x_{TOKEN}"
    for name in ("a.csv", "b.yml", "LICENSE", ".gitattributes"):
        write(folder, name, f"1\n{secret}".encode())
    write(folder, "c.md", b"\xff\xfe")
    save_file({"x": torch.zeros(1)}, folder / "d.safetensors", {"by": secret, "from": "/lustre/me"})
    problems = prepare(folder, REPO).problems
    assert [problem.split(": ")[0] for problem in problems] == [
        "c.md is no text in UTF-8, as files of its name are; save it as such, or remove it",
        ".gitattributes, line 2", "LICENSE, line 2", "a.csv, line 2", "b.yml, line 2",
        "d.safetensors (metadata), line 1", "d.safetensors (metadata)",
    ]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(folder, name):
    change, expected = REFUSED[name]
    change(folder)
    problems = "\n".join(prepare(folder, REPO).problems)
    assert expected in problems
    assert "aB3aB3" not in problems, "tokens are not shown"
    with pytest.raises(ValueError, match="not ready to be published"):
        publishing.upload(prepare(folder, REPO))


def test_own_token_is_found(folder):
    (folder / "a.txt").write_text("x short-secret y")
    assert not prepare(folder, REPO).problems
    (problem,) = prepare(folder, REPO, token="short-secret").problems
    assert problem.startswith("a.txt, line 1: this looks like a secret (your token of the Hub)")


def test_without_detect_secrets_ones_own_token_is_found(folder, monkeypatch):
    assert prepare(folder, REPO).notes == []
    monkeypatch.setitem(sys.modules, "detect_secrets.core.plugins.util", None)
    (folder / "a.txt").write_text(f"1\n{TOKEN}")
    publication = prepare(folder, REPO)
    assert publication.problems == []
    (note,) = publication.notes
    assert "texts were not scanned for secrets" in note
    assert "pip install 'transformers-nim[push]'" in note
    monkeypatch.setattr(publications, "get_token", lambda: TOKEN)
    (problem,) = prepare(folder, REPO).problems
    assert problem.startswith("a.txt, line 2: this looks like a secret")


def replace_weights(folder):
    """Those of another model of the same shape."""
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_results_of_other_weights_are_refused(folder, results):
    here = results["settings"]["model_hash"]
    replace_weights(folder)
    (problem,) = prepare(folder, REPO).problems
    assert problem.startswith(f"results.json was measured on another model (hash {here}) than the one in this folder")
    assert results_of(folder)["settings"]["model_hash"] in problem
    assert "Measure this model, or put back the one that was measured" in problem
    # With results of its own, it is published.
    (folder / "results.json").write_text(json.dumps(results_of(folder)))
    assert prepare(folder, REPO).problems == []


def test_results_of_other_settings_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_samples": 3}))
    write_card(folder)
    (problem,) = prepare(folder, REPO).problems
    assert problem.startswith("results.json was measured on another model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_of_weights_in_the_precision_that_they_name(folder, dtype):
    """Weights are stored in bfloat16; they are measured in float32, or in bfloat16."""
    model = NIMForRobustImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results_of(folder, dtype)))
    assert prepare(folder, REPO).problems == []
    replace_weights(folder)
    assert prepare(folder, REPO).problems


def test_results_from_before_weights_were_rounded_are_of_others(folder):
    model = NIMForRobustImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (problem,) = prepare(folder, REPO).problems
    assert problem.startswith("results.json was measured on another model")


def test_code_beside_weights_is_no_part_of_what_was_measured(folder, results):
    for name, text in remote_code_files(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
    write_card(folder)
    assert prepare(folder, REPO).problems == []
    assert results_of(folder) == results


def test_results_that_name_no_model_are_noted(folder):
    (folder / "results.json").write_text(json.dumps(RESULTS))
    publication = prepare(folder, REPO)
    assert publication.problems == []
    (note,) = publication.notes
    assert note.startswith("results.json does not say of which weights it is")


def test_weights_are_not_loaded_before_they_are_looked_at(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(publications, "_hash", refuse)
    with pytest.raises(AssertionError):
        prepare(folder, REPO)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert prepare(folder, REPO).problems
    (folder / "pytorch_model.bin").unlink()
    for name in ("model.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        for broken in (None, b"x", content[:-9]):
            (folder / name).unlink() if broken is None else (folder / name).write_bytes(broken)
            assert prepare(folder, REPO).problems
        (folder / name).write_bytes(content)


def test_what_was_not_checked_is_printed(folder, capsys, monkeypatch):
    (folder / "results.json").write_text(json.dumps(RESULTS))
    monkeypatch.setattr("transformers_nim.commands.push.stale_files", lambda *_: [])
    assert main([str(folder), "--repo_id", REPO]) == 0
    assert "not checked:\n- results.json does not say of which weights it is" in capsys.readouterr().out


def test_refused_by_the_script(loopback_hub, push, folder):
    change_results(folder)
    done = push(folder, "--repo_id", REPO, "--push")
    assert done.returncode == 1
    assert "61.5 [33.0, 50.0] |" in done.stderr
    assert loopback_hub.requests == []


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODEL_CARDS.glob("*/card.json")))
def test_shipped_folders_can_be_published(name):
    publication = prepare(MODEL_CARDS / name, f"nim/{name}", with_code=True)
    assert (publication.problems, publication.notes) == ([], [])
    assert "modeling_nim.py" in publication.files


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        prepare(tmp_path / "none", REPO)


@pytest.mark.parametrize(
    "name",
    [
        "https://hub/nim",
        "..",
        "-rf",
        "a/..",
        "nim/-rf",
        "nim/a--b",
        "nim/a.git",
        "nim/ä",
        "nim/a\n",
        "",
        "a/b/c",
        "a" * 97,
    ],
)
def test_names_of_no_repository(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is no name of a repository; pass OWNER/NAME")):
        prepare(tmp_path, name)
    args = SimpleNamespace(push_to_hub=True, hub_model_id=name or "..", output_dir=tmp_path, hub_token=None)
    with pytest.raises(ValueError, match="is no name of a repository; pass OWNER/NAME"):
        create_repository(args)


@pytest.mark.parametrize("name", ["..", "-rf", "a b", "a/../b", "v1\n"])
def test_names_of_no_branch(folder, capsys, name):
    with pytest.raises(SystemExit):
        main([str(folder), "--repo_id", REPO, f"--revision={name}"])
    assert f"--revision {name!r} is no name of a branch" in capsys.readouterr().err


def test_hashes():
    assert publishing._sha256(b"1") == hashlib.sha256(b"1").hexdigest()
