"""Everything that reads a file: a real file of each kind, how it is read, how it is damaged, and
what it may answer.

A reader may refuse with a `DmleError`. A *strict* one may otherwise only give what was written:
another value without a word is a silent change. Readers of what people write themselves (settings,
rules, specifications) are not strict: other text is other input.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from pydantic import BaseModel

from interp.errors import DmleError
from interp.models.refusals import panicked
from interp.results import checksums
from tests.robustness import mutate, processes, tiny
from tests.robustness.commands import RUN, States
from tests.robustness.mutate import Damage
from tests.robustness.watch import MEMORY, Failure, Say, peak, place_of

Damager = Callable[[bytes, random.Random, Sequence[bytes]], Damage]


class Refused(DmleError):
    """A command ended with an error in one line."""


class Crashed(Exception):
    """A command ended in another way than with success or one line."""


@dataclass(frozen=True)
class FileReader:
    """One kind of file.

    Attributes:
        name: Name of the reader.
        folder: A folder with a whole file and what stands around it; copied for every case.
        file: The file in it that is damaged.
        read: Reads it, given the copy of the folder; a value, compared by `digest`.
        damagers: Ways to damage it, all equally often.
        strict: Whether another value is a fault.
        share: Share of the time, relative to others.
        wrong_kind: Digests that are fine too: those of other files that the reader reads as well.
    """

    name: str
    folder: Path
    file: str
    read: Callable[[Path], Any]
    damagers: tuple[Damager, ...] = (mutate.damaged,)
    strict: bool = True
    share: float = 1.0
    wrong_kind: frozenset[str] = field(default_factory=frozenset)

    def content(self) -> bytes:
        """The whole file."""
        return (self.folder / self.file).read_bytes()


class FileCases:
    """The cases of one reader: seed → damaged file → what came of it."""

    def __init__(self, reader: FileReader, others: Sequence[bytes], scratch: Path) -> None:
        self.reader, self.others, self.scratch = reader, others, scratch
        self.content = reader.content()
        self.right: str | None = None

    def damage(self, seed: int) -> Damage:
        """The file of a seed."""
        rng = random.Random(f"{self.reader.name} {seed}")
        if rng.random() < 0.02:
            return rng.choice(self.others), "another file in its place"
        how = rng.choice(self.reader.damagers)
        try:
            return how(self.content, rng, self.others)
        except Exception as error:  # what no writer of the format makes
            changed, said = mutate.damaged(self.content, rng, self.others)
            return changed, f"{said} (after {type(error).__name__} in {how.__name__})"

    def __call__(self, seed: int, say: Say) -> list[Failure]:
        """Read the file of a seed."""
        if self.right is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            os.chdir(self.scratch)
            self.right = digest(self.reader.read(self._copy(self.content)))
        damage, said = self.damage(seed)
        say(said)
        before, root = peak(), self._copy(damage)
        failure: tuple[str, str, str] | None = None
        try:
            found = self.reader.read(root)
        except DmleError:
            pass
        except MemoryError as error:
            failure = "memory", place_of(error), "more than the limit was asked for"
        except BaseException as error:
            if not (isinstance(error, Exception) or panicked(error)):
                raise
            failure = type(error).__name__, place_of(error), str(error)
        else:
            if (
                self.reader.strict
                and (got := digest(found)) != self.right
                and got not in self.reader.wrong_kind
            ):
                failure = "silent change", "", "other values than were written, and no error"
        if failure is None and peak() - before > MEMORY:
            failure = "memory", "", f"{(peak() - before) >> 20} MiB more than before"
        if failure is None and (others := self._beside()):
            failure = "outside", "", f"files beside the folder: {others[:5]}"
        return (
            []
            if failure is None
            else [Failure(self.reader.name, seed, failure[0], failure[1], failure[2][:300], said)]
        )

    def _copy(self, content: bytes) -> Path:
        """A fresh copy of the folder with this content in the file's place."""
        root = self.scratch / "case"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.reader.folder, root)
        (root / self.reader.file).write_bytes(content)
        return root

    def _beside(self) -> list[str]:
        """What was written beside the folder; it is taken away."""
        found = [path for path in sorted(self.scratch.iterdir()) if path.name != "case"]
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return [path.name for path in found]


def digest(value: Any) -> str:
    """SHA-256 of a value of any of the kinds that readers give."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, xr.Dataset):
        parts = {
            str(name): (array.dims, array.values, array.attrs)
            for name, array in value.variables.items()
        }
        value = (parts, value.attrs)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray) and value.dtype != object:
        state.update(f"{value.dtype}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            state.update(repr(key).encode())
            _feed(state, value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        state.update(f"[{len(value)}".encode())
        for each in value:
            _feed(state, each)
    else:
        state.update(repr(value).encode("utf-8", "surrogatepass"))


# -- the readers ---------------------------------------------------------------------------------


def file_readers(states: States, root: Path) -> list[FileReader]:
    """All readers of files, on files that the real commands and writers made.

    Args:
        states: What the commands leave; made as needed.
        root: Where further sample folders go.
    """
    sealed = [
        *_netcdf(states),
        *_edits(states),
        *_statistics(states, root),
        *_sequences(states),
        *_json(states),
        *_commands(states, root),
    ]
    return [
        *sealed,
        *(
            _hostile(reader)
            for reader in sealed
            if reader.name not in ("map.nc", "tuning.nc", "dense delta")
        ),
        *(
            _altered(reader)
            for reader in sealed
            if reader.name in ("effects.nc", "dmle profile: effects.nc")
        ),
        _figures(states, root),
        *_sources(states, root),
        *_settings(states),
        *_models(states),
    ]


def _hostile(reader: FileReader) -> FileReader:
    """The same reader of files that somebody made on purpose: the checksum fits, so that other
    values are no fault."""
    of = {
        ".nc": (mutate.resealed_dataset,),
        ".json": (mutate.resealed_json,),
        ".safetensors": (mutate.resealed_safetensors,),
    }
    return dataclasses.replace(
        reader,
        name=f"{reader.name}, resealed",
        damagers=of[Path(reader.file).suffix],
        strict=False,
        share=reader.share / 2,
    )


def _altered(reader: FileReader) -> FileReader:
    """The same reader of a NetCDF file whose bytes somebody changed, with a correct checksum:
    HDF5 itself is tried."""
    return dataclasses.replace(
        reader,
        name=f"{reader.name}, altered on purpose",
        damagers=(mutate.resealed,),
        strict=False,
        share=reader.share * 2,
    )


def _netcdf(states: States) -> list[FileReader]:
    from interp.results import effects

    made = {
        "map": ("trace-prompt", "map.nc"),
        "effects": ("trace", "effects.nc"),
        "faithfulness": ("faithfulness", "faithfulness.nc"),
        "profile": ("profile", "profile.nc"),
        "evidence": ("evidence", "evidence.nc"),
        "scores": ("evaluate", "scores.nc"),
        "sweep": ("sweep", "sweep.nc"),
        "tuning": ("tune", "tuning.nc"),
        "sequence": ("sequence", "sequence.nc"),
    }
    paths = {name: (states.after(command) / RUN, file) for name, (command, file) in made.items()}
    known = frozenset(digest(effects.load(folder / file)) for folder, file in paths.values())
    return [
        FileReader(
            f"{name}.nc",
            _alone(states, folder / file),
            file,
            lambda root, file=file: effects.load(root / file),
            share=2.0,
            wrong_kind=known,
        )
        for name, (folder, file) in paths.items()
    ]


def _edits(states: States) -> list[FileReader]:
    from editing.editors.registry import load_edit

    deltas = states.after("edit") / RUN / "deltas"
    found = {"delta": "dmle", "dense delta": "ft", "codebook": "grace", "context": "ice"}
    paths = {name: next((deltas / editor).glob("*.safetensors")) for name, editor in found.items()}
    known = frozenset(digest(load_edit(path)) for path in paths.values())
    return [
        FileReader(
            name,
            _alone(states, path),
            path.name,
            lambda root, file=path.name: load_edit(root / file),
            (mutate.damaged, mutate.changed_safetensors),
            wrong_kind=known,
        )
        for name, path in paths.items()
    ]


def _statistics(states: States, root: Path) -> list[FileReader]:
    from editing.closed_form import covariance
    from editing.config import CovarianceConfig
    from interp.models.loading import load

    model = load(str(states.inputs / "model"))
    config = CovarianceConfig(
        **{**tiny.SETTINGS["covariance"], "corpus": str(states.inputs / "corpus.txt")}
    )
    whole, begun = root / "covariance", root / "checkpoint"
    covariance.measure(model, [0], config, whole)
    (file,) = (path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    _interrupt(model, config, begun)
    (unfinished,) = (path.relative_to(begun) for path in begun.rglob("*.safetensors"))
    both, outputs = config.model_copy(update={"output_tokens": 20}), root / "outputs"
    shutil.copytree(whole, outputs)
    covariance.measure(model, [0], both, outputs)
    (moment,) = {path.relative_to(outputs) for path in outputs.rglob("*.safetensors")} - {file}

    def read(place: Path) -> Any:
        return covariance.measure(model, [0], config, place).moment(0)

    def read_outputs(place: Path) -> Any:
        return covariance.measure(model, [0], both, place).outputs[0]

    damagers: tuple[Damager, ...] = (mutate.damaged, mutate.changed_safetensors)
    return [
        FileReader("covariance", whole, str(file), read, damagers),
        FileReader("moments of outputs", outputs, str(moment), read_outputs, damagers),
        FileReader("checkpoint", begun, str(unfinished), read, damagers, share=0.5),
    ]


def _sequences(states: States) -> list[FileReader]:
    """What a study of many edits goes on from: a file that is damaged is made again."""
    from editing.studies.sequence import read_checkpoint
    from editing.studies.sequence_states import EditedWeights, read_progress
    from interp.models.loading import load

    kept = states.after("sequence") / RUN / "sequence" / "ft"
    model = load(str(states.inputs / "model"))

    def checkpoint(path: Path) -> Any:
        found = read_checkpoint(path)
        if found is None:
            raise Refused("no checkpoint")
        return found

    def state(path: Path) -> Any:
        progress = read_progress(path)
        if progress is None:
            raise Refused("no state")
        weights = EditedWeights(model)
        weights.resume(path)
        values = {name: value.detach().clone() for name, value in model.parameters.items()}
        weights.restore()
        return progress, values

    scores, weights = kept / "sequence-1.json", kept / "sequence-1.safetensors"
    return [
        FileReader(
            "sequence checkpoint",
            _alone(states, scores),
            scores.name,
            lambda root: checkpoint(root / scores.name),
            (mutate.damaged, mutate.changed_json),
        ),
        FileReader(
            "sequence state",
            _alone(states, weights),
            weights.name,
            lambda root: state(root / weights.name),
            (mutate.damaged, mutate.changed_safetensors),
        ),
    ]


def _interrupt(model: Any, config: Any, folder: Path) -> None:
    """Leave the running sums of a measurement that was stopped."""
    from editing.closed_form import covariance, moments

    least, share = moments.CHECKPOINT_SECONDS, moments.CHECKPOINT_SHARE
    moments.CHECKPOINT_SECONDS = 0.0
    moments.CHECKPOINT_SHARE = 0  # pyrefly: ignore[bad-assignment]
    calls = iter((None, None))

    def stop(tokens: int) -> None:
        if next(calls, "stop") == "stop":
            raise KeyboardInterrupt

    try:
        covariance.measure(
            model, [0], config.model_copy(update={"batch_size": 1}), folder, advance=stop
        )
    except KeyboardInterrupt:
        pass
    finally:
        moments.CHECKPOINT_SECONDS, moments.CHECKPOINT_SHARE = least, share


def _json(states: States) -> list[FileReader]:
    from editing.studies.cells import read_cell
    from figures.answers import read_answers
    from interp.selection.atlas.entry import atlas
    from interp.selection.layers import LayerSelection, load_for_rules
    from interp.tracing.knowledge import read_rows

    cell = next((states.after("sweep") / RUN / "sweep").glob("*/*.json"))
    selected = states.after("select") / RUN
    about = states.after("atlas add") / RUN / "atlas" / "tiny" / "about.json"

    def read_one(path: Path) -> Any:
        found = read_cell(path)
        if found is None:  # as documented: it is run again
            raise Refused("no cell")
        return found

    answers, stats = (
        states.after("evaluate") / RUN / "answers.json",
        states.after("rules stats") / RUN / "stats-rules.json",
    )
    both: tuple[Damager, ...] = (mutate.damaged, mutate.changed_json)
    return [
        FileReader(
            "answers.json",
            _alone(states, answers),
            answers.name,
            lambda root: read_answers(root / answers.name),
            both,
        ),
        FileReader(
            "rules stats",
            _alone(states, stats),
            stats.name,
            lambda root: read_rows(root / stats.name),
            both,
        ),
        FileReader(
            "cell", _alone(states, cell), cell.name, lambda root: read_one(root / cell.name), both
        ),
        FileReader(
            "selection.json",
            _alone(states, selected / "selection.json"),
            "selection.json",
            lambda root: LayerSelection.load(root / "selection.json"),
            both,
        ),
        FileReader(
            "atlas entry",
            _alone(states, about),
            about.name,
            lambda root: atlas(root).about,
            both,
        ),
        FileReader(
            "selection-rules.json",
            _alone(states, selected / "selection-rules.json"),
            "selection-rules.json",
            lambda root: load_for_rules(root / "selection-rules.json"),
            both,
        ),
    ]


def _sources(states: States, root: Path) -> list[FileReader]:
    from interp.models.corpus import paragraphs
    from interp.rules.checks import check_rules
    from interp.rules.rulebook.build import build_files
    from interp.rules.sources import load_rules

    rules, spec = states.inputs / "rules.json", states.inputs / "spec.yaml"
    exported = states.after("rules export") / RUN / "exported"
    packed = root / "zip"
    packed.mkdir(parents=True, exist_ok=True)
    shutil.make_archive(str(packed / "RuleEdit"), "zip", exported)
    both: tuple[Damager, ...] = (mutate.damaged, mutate.changed_json)
    texts: tuple[Damager, ...] = (mutate.damaged, mutate.changed_yaml)
    spare: dict[str, Any] = {"strict": False}
    return [
        FileReader(
            "rules.json",
            _alone(states, rules),
            rules.name,
            lambda at: load_rules(at / rules.name),
            both,
            **spare,
        ),
        FileReader(
            "rules check",
            _alone(states, rules),
            rules.name,
            lambda at: check_rules(load_rules(at / rules.name)),
            (mutate.changed_json,),
            **spare,
        ),
        FileReader("RuleEdit f_d.json", exported, "0/f_d.json", load_rules, both, **spare),
        FileReader("RuleEdit ins.json", exported, "0/ins.json", load_rules, both, **spare),
        FileReader(
            "RuleEdit zip",
            packed,
            "RuleEdit.zip",
            lambda at: load_rules(at / "RuleEdit.zip"),
            (mutate.damaged, mutate.changed_zip),
            **spare,
        ),
        FileReader(
            "specification",
            _alone(states, spec),
            spec.name,
            lambda at: build_files([at / spec.name]),
            texts,
            **spare,
        ),
        FileReader(
            "corpus",
            _alone(states, states.inputs / "corpus.txt"),
            "corpus.txt",
            lambda at: paragraphs(at / "corpus.txt"),
            share=0.5,
            **spare,
        ),
    ]


def _settings(states: States) -> list[FileReader]:
    from interp.app.run import raw_settings
    from interp.app.steps import load_steps, parse_settings
    from interp.results.run_folder import RunFolder

    steps, config = load_steps(), states.inputs / "config.yaml"
    kept = states.after("profile") / RUN / "run.yaml"
    texts: tuple[Damager, ...] = (mutate.damaged, mutate.changed_yaml)

    def read_run(root: Path) -> Any:
        return parse_settings(steps, raw_settings(RunFolder(root).settings))

    def read_config(root: Path) -> Any:
        return parse_settings(steps, raw_settings({}, config=root / "config.yaml"))

    return [
        FileReader("run.yaml", _alone(states, kept), "run.yaml", read_run, texts, strict=False),
        FileReader(
            "--config", _alone(states, config), "config.yaml", read_config, texts, strict=False
        ),
    ]


def _commands(states: States, root: Path) -> list[FileReader]:
    """Whole commands on a run folder with one damaged file: what they write must be right, or
    not written."""
    cases = (
        ("profile", "trace", "effects.nc", "profile.nc"),
        ("select", "profile", "profile.nc", "selection.json"),
        ("regret", "sweep", "sweep.nc", "regret.csv"),
        ("regret", "sweep", "profile.nc", "regret.csv"),
        ("report", "evaluate", "effects.nc", "report.html"),
        ("report", "evaluate", "scores.nc", "report.html"),
        ("report", "evaluate", "answers.json", "report.html"),
        ("report", "evaluate", "selection.json", "report.html"),
    )
    readers = []
    for command, after, file, result in cases:
        folder = root / f"{command}-{file}"
        shutil.copytree(states.after(after) / RUN, folder / RUN)
        readers.append(
            FileReader(
                f"dmle {command}: {file}",
                folder,
                f"{RUN}/{file}",
                lambda at, command=command, result=result: _command(
                    [command, "--run", RUN], at, result
                ),
                share=1.5,
            )
        )
    return readers


def _figures(states: States, root: Path) -> FileReader:
    """`dmle figures` on a folder whose record of figures names files elsewhere: they stay, and
    the table is right."""
    folder = root / "figures"
    (folder / RUN / "figures").mkdir(parents=True)
    shutil.copy(states.after("evaluate") / RUN / "answers.json", folder / RUN)
    done = processes.run(folder, ["figures", "--run", RUN])
    if done.code != 0:
        raise RuntimeError(done.said)
    shutil.rmtree(folder / "tmp")
    (folder / "outside.txt").write_text("somebody's work", encoding="utf-8")
    sha256 = hashlib.sha256(b"somebody's work").hexdigest()

    def elsewhere(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
        tree = json.loads(content)
        name = rng.choice(
            (
                "../outside.txt",
                "figures/../../outside.txt",
                str(Path.cwd() / "case" / "outside.txt"),
            )
        )
        for record in tree["parts"].values():
            record["outputs"][name] = sha256
            record["version"] = {"code": "older"}
        tree[checksums.CHECKSUM] = checksums.checksum(tree)
        return json.dumps(tree).encode(), f"an output {name}"

    def read(at: Path) -> Any:
        table = _command(["figures", "--run", RUN], at, "tables/before-after.md")
        if not (at / "outside.txt").is_file():
            raise Crashed("a file outside the run folder was deleted")
        return table

    damagers = (mutate.damaged, mutate.changed_json, mutate.resealed_json, elsewhere)
    return FileReader(
        "dmle figures: manifest.json",
        folder,
        f"{RUN}/figures/manifest.json",
        read,
        damagers,
        share=0.7,
    )


def _command(arguments: Sequence[str], root: Path, result: str) -> bytes:
    """Run a command line in this process, in a folder; the file that it writes.

    Raises:
        Refused: It said what is wrong, and ended with 2.
        Crashed: It ended in another way.
    """
    from interp.app import commands as cli

    os.chdir(root)
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        if stop.code == 2:
            raise Refused("exit code 2") from stop
        raise Crashed(f"exit code {stop.code}") from stop
    finally:
        os.chdir(root.parent)
    return (root / RUN / result).read_bytes()


def _models(states: States) -> list[FileReader]:
    from interp.models.loading import load

    folder = states.inputs / "model"
    damagers: dict[str, tuple[Damager, ...]] = {
        "config.json": (mutate.damaged, mutate.changed_json),
        "tokenizer.json": (mutate.damaged, mutate.changed_json),
        "tokenizer_config.json": (mutate.damaged, mutate.changed_json),
        "generation_config.json": (mutate.damaged, mutate.changed_json),
        "model.safetensors": (mutate.damaged, mutate.changed_safetensors),
    }
    return [
        FileReader(
            f"model: {file}",
            folder,
            file,
            lambda at: load(str(at), device="cpu").weight_hash,
            of,
            False,
            1.5,
        )
        for file, of in damagers.items()
        if (folder / file).is_file()
    ]


def _alone(states: States, path: Path) -> Path:
    """A folder that holds a copy of this file and nothing else."""
    place = states.kept / "alone" / hashlib.sha256(str(path).encode()).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    return place
