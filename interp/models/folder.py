"""Writing a model as a Hugging Face folder: weights, configuration, and everything that came beside
them.

What a model needs to be used is more than its weights: the tokens that end an answer and sampling
settings (`generation_config.json`), the chat template, tokenizer and processor files, licences.
These are copied as they were, byte for byte. Left out are other weights, and the README: it
describes the model before the edit.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import ModelError
from interp.results.files import partial_path, sweep

CONFIG, GENERATION = "config.json", "generation_config.json"
_COMPANIONS = frozenset(
    {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".spm", ".bpe"}
)
# What a loader reads by its name: left from an older model, it would change this one.
_READ = frozenset(
    {
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)\b.*\.(safetensors|bin|index\.json)")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_TEMPLATES = "additional_chat_templates"


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside the weights of a model folder, except its configuration, which is
    written anew.
    """
    for path in sorted(source.iterdir()):
        if path.name != CONFIG and _is_companion(path):
            shutil.copyfile(path, target / path.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, target / _TEMPLATES, dirs_exist_ok=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill inside a `with` block, which takes the place of `folder` on leaving
    it without error.

    A model folder that is there is replaced: what a loader would read of it goes (weights,
    configuration, tokenizer and generation settings), so that no shard of an older model stays
    beside those of this one; other files are left. Between the first file that goes and the last
    that comes, the folder has no `config.json`: nobody loads a mixture.

    Raises:
        ModelError: `folder` is a file, or a folder of other things than a model.
    """
    if folder.exists() and not folder.is_dir():
        raise ModelError(
            f"cannot write a model to {folder}: it is a file; give a folder that is new or empty"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ModelError(
            f"cannot write a model to {folder}: other files lie there, and no model (config.json)"
            " that could be replaced; give a folder that is new or empty"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of the absolute path: "." has no name.
    place = folder.absolute()
    sweep(place.parent)
    partial = partial_path(place)
    partial.mkdir()
    try:
        yield partial
        make_readable(partial)
        if folder.is_dir():
            _swap(partial, folder)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, folder: Path) -> None:
    (folder / CONFIG).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in _READ or _WEIGHTS.fullmatch(path.name):
            path.unlink()
    shutil.rmtree(folder / _TEMPLATES, ignore_errors=True)
    for path in sorted(partial.iterdir(), key=_is_config):
        path.replace(folder / path.name)


def _is_config(path: Path) -> bool:
    return path.name == CONFIG


def _is_companion(path: Path) -> bool:
    if not path.is_file() or path.name.endswith(".index.json"):  # of shards: weights
        return False
    return path.suffix in _COMPANIONS or path.name.upper().startswith(_LICENCES)


def make_readable(folder: Path) -> None:
    """Let everybody read the files who may read the folder: the writer of weights keeps its
    files to the owner.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
