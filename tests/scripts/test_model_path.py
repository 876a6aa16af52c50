"""Names of models: folders, hub ids in the local cache, the bundled model. Nothing goes to a network."""

from pathlib import Path

import pytest

from protocol.errors import StartupError
from protocol.options import ModelOptions
from scripts import model_path
from scripts.model_path import resolve


def checkpoint(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names or ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def cached(home: Path, *names: str) -> Path:
    repository = home / "hub" / "models--org--small-1.5B"
    folder = checkpoint(repository / "snapshots" / "abc", *names)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return folder


def test_a_folder_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    options = resolve(ModelOptions(model="mine/"), {})
    assert (options.model, options.served_model_name) == (str(folder), ("mine",))


def test_a_given_name_stays(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    assert resolve(ModelOptions(model=str(folder), served_model_name=("a", "b")), {}).served_model_name == (
        "a",
        "b",
    )


def test_a_hub_id_is_found_in_the_cache_and_goes_by_it(tmp_path: Path) -> None:
    folder = cached(tmp_path)
    for environ in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        options = resolve(ModelOptions(model="org/small-1.5B"), environ)
        assert (options.model, options.served_model_name) == (str(folder), ("org/small-1.5B",))


def test_another_tokenizer(tmp_path: Path) -> None:
    folder = cached(tmp_path, "tokenizer.json")
    model = checkpoint(tmp_path / "m")
    options = resolve(ModelOptions(model=str(model), tokenizer="org/small-1.5B"), {"HF_HOME": str(tmp_path)})
    assert options.tokenizer == str(folder)
    assert options.served_model_name == ("m",)


def test_the_bundled_model_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "tern-mini")
    monkeypatch.setattr(model_path, "BUNDLED", folder)
    options = resolve(ModelOptions(), {})
    assert (options.model, options.served_model_name) == (str(folder), ("tern-mini",))


def test_no_model_and_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_path, "BUNDLED", tmp_path / "tern-mini")
    with pytest.raises(StartupError, match="no --model was given") as caught:
        resolve(ModelOptions(), {})
    assert "--model" in caught.value.hint


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "../..x/", "org/na me"])
def test_no_such_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartupError, match="no such folder") as caught:
        resolve(ModelOptions(model=name), {})
    assert name in caught.value.message


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"has no config\.json"):
        resolve(ModelOptions(model=str(checkpoint(tmp_path / "m", "tokenizer.json"))), {})


def test_half_a_snapshot_is_not_taken_and_the_failed_download_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, "config.json")
    monkeypatch.setattr(model_path, "DOWNLOAD", "print('offline,\\nsorry'); raise SystemExit(1)")
    with pytest.raises(
        StartupError, match=r"org/small-1\.5B: neither .* to be downloaded: offline, sorry"
    ) as caught:
        resolve(ModelOptions(model="org/small-1.5B"), {"HF_HOME": str(tmp_path)})
    assert "folder of a checkpoint" in caught.value.hint


def test_a_download_lands_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached(tmp_path, "config.json")
    monkeypatch.setattr(model_path, "DOWNLOAD", f"open({str(folder / 'model.safetensors')!r}, 'w')")
    assert resolve(ModelOptions(model="org/small-1.5B"), {"HF_HOME": str(tmp_path)}).model == str(folder)


HUB = """
import os

class constants: HF_HUB_CACHE = os.environ["FAKE_CACHE"]

class File:
    def __init__(self, rfilename, size): self.rfilename, self.size = rfilename, size

class HfApi:
    def model_info(self, hub_id, files_metadata):
        files = [File("a.safetensors", 3 << 30), File("b.safetensors", 1 << 30), File("c.bin", 1 << 40)]
        return type("Info", (), {"siblings": files})

def snapshot_download(hub_id, allow_patterns):
    open(os.environ["FAKE_CACHE"] + "/downloaded", "w").write(" ".join(allow_patterns))
"""


def test_what_memory_cannot_hold_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fake" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HUB)
    (package / "constants.py").write_text("import os\nHF_HUB_CACHE = os.environ['FAKE_CACHE']\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_CACHE", str(tmp_path))
    options, environ = ModelOptions(model="org/large"), {"HF_HOME": str(tmp_path)}
    monkeypatch.setattr(model_path, "available_memory", lambda: (4 << 30) - 1)
    with pytest.raises(StartupError, match=r"its weights take 4\.0 GiB, more than memory holds"):
        resolve(options, environ)
    assert not (tmp_path / "downloaded").exists()
    with pytest.raises(StartupError, match=r"it has no config\.json"):
        resolve(ModelOptions(model="org/large", quantization="int8"), environ)
    assert (tmp_path / "downloaded").read_text().startswith("*.safetensors *.json")


def test_adapters_are_folders_or_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint(tmp_path / "m")
    here = checkpoint(tmp_path / "here", "adapter_config.json", "adapter_model.safetensors")
    there = cached(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path)
    given = ModelOptions(model=str(model), lora=("a=here", "b=org/small-1.5B"))
    assert resolve(given, {"HF_HOME": str(tmp_path)}).lora == (f"a={here}", f"b={there}")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    pickled = checkpoint(tmp_path / "p", "adapter_config.json", "adapter_model.bin")
    for lora, said in {
        f"a={pickled}": "no adapter_model.safetensors",
        f"a={model}": "no adapter_config.json",
        "a=nowhere": "no such folder",
        "m=x": "'m' is the name of the model itself",
    }.items():
        with pytest.raises(StartupError, match=said):
            resolve(ModelOptions(model=str(model), lora=(lora,)), {})
