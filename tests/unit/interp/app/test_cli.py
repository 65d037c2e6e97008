"""The command line: settings by precedence, one clear line for each mistake, and nothing heavy
before it is needed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from interp.app.command_line import _next
from interp.results import effects
from interp.rules.sources import Rule, dump_rules, load_rules
from interp.selection.layers import LayerSelection
from tests.unit.records import known, recorded

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, list[str]]]


def save_maps(path: Path, layers: int = 6, rules: int = 4) -> None:
    """Effect maps with a strong mlp effect in layers 3 and 4 at the subject, as `dmle trace`
    leaves them."""
    maps = {}
    for rule, form in (
        (r, f) for r in range(rules) for f in ("formula", "description", "instance")
    ):
        rng = np.random.default_rng([rule, len(form)])
        score = rng.normal(-3, 0.05, (2, layers, 3, 4))
        score[1, 3:5, 1] += 1
        maps[f"rule{rule}", form] = effects.effect_map(
            score,
            clean=-1.0,
            corrupted=rng.normal(-3, 0.05, 4),
            components=["resid", "mlp"],
            tokens=["a", "b", "c"],
            roles=["prefix", "subject_last", "last"],
            is_corrupted=[False, True, False],
            prompt="abc",
            answer="d",
            attrs={"window": 1},
        )
    known(path.parent)
    effects.save(recorded(effects.concat(maps), "trace", "trace"), path)


# Settings.


def test_flags_override_the_file_overrides_the_run(dmle_lines: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_maps(run / "effects.nc")
    held = {"profile": {"bootstrap": 20, "confidence": 0.8, "seed": 1}, "rules": {"limit": 2}}
    (run / "run.yaml").write_text(yaml.safe_dump({"settings": held}), encoding="utf-8")
    (tmp_path / "c.yaml").write_text(
        "profile: {confidence: 0.7, seed: 2}\nselect: {width: 2}\n", encoding="utf-8"
    )
    code, _ = dmle_lines(
        "profile",
        "--run",
        run,
        "--config",
        tmp_path / "c.yaml",
        "--set",
        "profile.seed=3",
        "--limit",
        1,
    )
    assert code == 0
    attrs = effects.load(run / "profile.nc").attrs
    assert (attrs["bootstrap"], attrs["confidence"], attrs["bootstrap_seed"]) == (20, 0.7, 3)
    kept = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert kept["settings"]["profile"] == {"bootstrap": 20, "confidence": 0.7, "seed": 3}
    assert kept["settings"]["rules"] == {"limit": 1} and kept["settings"]["select"] == {"width": 2}
    assert kept["provenance"]["version_torch"]
    assert len(load_rules(run / "rules.json")) == 3  # the first of each split
    # The next command, without flags, goes on with what is in force.
    assert dmle_lines("profile", "--run", run)[0] == 0
    assert effects.load(run / "profile.nc").attrs["bootstrap_seed"] == 3


def test_profile_and_select_follow_each_other(dmle_lines: Command, tmp_path: Path) -> None:
    save_maps(tmp_path / "effects.nc")
    code, said = dmle_lines("profile", "--run", tmp_path)
    assert code == 0 and said[-1] == f"Done. Next: dmle select --run {tmp_path}"
    assert "0 of 12 prompts left out as not traceable" in " ".join(said)
    code, said = dmle_lines("select", "--run", tmp_path, "--width", "2")
    assert code == 0 and said[-1] == f"Done. Next: dmle edit --run {tmp_path}"
    assert "formula+description: layers 3–4" in said
    assert LayerSelection.load(tmp_path / "selection.json").layers_of("instance") == (3, 4)


def test_set_takes_any_yaml_value(dmle_lines: Command, tmp_path: Path) -> None:
    save_maps(tmp_path / "effects.nc")
    roles = "profile.lookup_roles=[subject_last, last]"
    sets = ["--set", roles, "--set", "profile.confidence=0.5"]
    assert dmle_lines("profile", "--run", tmp_path, *sets)[0] == 0
    attrs = effects.load(tmp_path / "profile.nc").attrs
    assert (attrs["lookup_roles"], attrs["confidence"]) == ("subject_last last", 0.5)


# Mistakes. Each: the arguments after `dmle`, with {tmp} for a folder prepared by `prepare`, and
# what is said.

MISTAKES: dict[str, tuple[str, str]] = {
    "typo in a file": (
        "trace --config {tmp}/typo.yaml",
        "unknown setting 'trace.sample': did you mean 'samples'?",
    ),
    "typo in a section": (
        "trace --config {tmp}/section.yaml",
        "unknown section 'tarce': did you mean 'trace'?",
    ),
    "number as section": (
        "trace --config {tmp}/number.yaml",
        "unknown section '1': valid are model, rules, trace",
    ),
    "typo in --set": (
        "trace --set trace.smaples=4",
        "unknown setting 'trace.smaples': did you mean 'samples'?",
    ),
    "section typo in --set": (
        "trace --set modle.name=x",
        "unknown section 'modle': did you mean 'model'?",
    ),
    "--set without a value": (
        "trace --set trace.samples",
        "--set trace.samples: section.key=value is needed",
    ),
    "--set without a section": (
        "trace --set samples=4",
        "--set samples=4: section.key=value is needed",
    ),
    "--set of broken YAML": ("trace --set trace.samples=[", "'[' is not a YAML value"),
    "value of the wrong kind": (
        "trace --set trace.samples=many",
        "trace.samples = 'many': Input should be a valid",
    ),
    "value out of range": (
        "trace --samples 1",
        "trace.samples = 1: Input should be greater than or equal to 2",
    ),
    "unknown role": ("trace --positions subject_last,verb", "trace.positions"),
    "limit of none": (
        "trace --limit 0",
        "rules.limit = 0: Input should be greater than or equal to 1",
    ),
    "no file of settings": (
        "trace --config {tmp}/none.yaml",
        "cannot read the configuration {tmp}/none.yaml",
    ),
    "broken file of settings": (
        "trace --config {tmp}/broken.yaml",
        "cannot read the configuration",
    ),
    "list of settings": (
        "trace --config {tmp}/list.yaml",
        "holds list; a mapping of sections is needed",
    ),
    "section without keys": (
        "trace --config {tmp}/flat.yaml --samples 4",
        "section 'trace' holds 3; a mapping of",
    ),
    "file in the way": (
        "trace --run {tmp}/typo.yaml",
        "typo.yaml is damaged|cannot write to the run folder",
    ),
    "file in the way, deeper": (
        "trace --run {tmp}/typo.yaml/run",
        "cannot write to the run folder",
    ),
    "damaged run": ("trace --run {tmp}/damaged", "run.yaml is damaged"),
    "no rule file": (
        "trace --rules {tmp}/none.json",
        "none.json does not exist; give 'embedded', a rules .json file",
    ),
    "rule file of broken JSON": (
        "trace --rules {tmp}/broken.json",
        "broken.json is not a rule file of schema",
    ),
    "rule file of another schema": (
        "trace --rules {tmp}/other.json",
        "other.json is not a rule file of schema",
    ),
    "unknown rule": (
        "trace --set rules.ids=[nothing]",
        "embedded has no usable rule 'nothing'; its ids are",
    ),
    "no rule to trace": (
        "trace --set rules.split=test",
        "no rule left: trace.splits is train, validation",
    ),
    "profile before trace": (
        "profile",
        "effects.nc is missing; run `dmle trace --run {tmp}/run` first",
    ),
    "select before profile": (
        "select",
        "profile.nc is missing; run `dmle profile --run {tmp}/run` first",
    ),
    "damaged maps": (
        "profile --run {tmp}/maps",
        "effects.nc is not a readable effect map of rules",
    ),
}


def prepare(folder: Path) -> None:
    texts = {
        "typo.yaml": "trace: {sample: 4}",
        "section.yaml": "tarce: {samples: 4}",
        "number.yaml": "1: {samples: 4}",
        "broken.yaml": "trace: [",
        "list.yaml": "- trace",
        "flat.yaml": "trace: 3",
        "broken.json": '{"schema": ',
        "other.json": '{"schema": "other/1", "rules": []}',
        "damaged/run.yaml": "settings: [",
        "maps/effects.nc": "no map",
        "maps/run.yaml": "settings: {}",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def arguments(line: str, folder: Path) -> list[str]:
    found = line.replace("{tmp}", str(folder)).split(" ")
    return found if "--run" in found else [*found, "--run", f"{folder}/run"]


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_gives_one_line_that_names_it(
    mistake: str, dmle_lines: Command, tmp_path: Path
) -> None:
    line, message = MISTAKES[mistake]
    prepare(tmp_path)
    code, said = dmle_lines(*arguments(line, tmp_path))
    errors = [text for text in said if text.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1 and said[-1] == errors[0]
    assert any(part.replace("{tmp}", str(tmp_path)) in errors[0] for part in message.split("|"))
    # Steps that look for their input announce themselves by a rule; nothing else may be said.
    assert [text for text in said[:-1] if not text.startswith("─")] == []
    assert not list(tmp_path.rglob("traces"))


def test_no_mistake_waits_for_torch(tmp_path: Path) -> None:
    prepare(tmp_path)
    lines = [arguments(line, tmp_path) for line, _ in MISTAKES.values()]
    program = (
        "import json, sys\n"
        "from interp.app.commands import main\n"
        "codes = []\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['dmle', *line]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        codes.append(stop.code)\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'matplotlib'} & set(sys.modules)\n"
        "sys.stdout.write(json.dumps([codes, sorted(heavy)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == [[2] * len(lines), []]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nobody/none"], "no model 'nobody/none': it is not the embedded"),
        (
            ["--model", "{tmp}"],
            "{tmp} has no config.json; a model folder as Hugging Face saves it is needed",
        ),
        (["--model", "{model}", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (
            ["--model", "{model}", "--set", "model.dtype=float33"],
            "dtype 'float33' is not a torch floating-point type",
        ),
        (
            ["--model", "{model}", "--set", "model.dtype=3"],
            "dtype '3' is not a torch floating-point type",
        ),
    ],
)
def test_a_wrong_model_is_told_before_the_first_step(
    flags: list[str],
    message: str,
    dmle_lines: Command,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"{tmp}": str(tmp_path), "{model}": str(model_folder)}
    code, said = dmle_lines(
        "trace", "--run", tmp_path / "run", *(places.get(flag, flag) for flag in flags)
    )
    assert code == 2 and len(said) == 1
    assert said[0].startswith(f"error: {message.replace('{tmp}', str(tmp_path))}")
    assert (
        list((tmp_path / "run").glob("*")) == []
    )  # no settings that the next command would take up


def test_a_wrong_flag_is_refused_with_the_nearest(dmle_lines: Command, tmp_path: Path) -> None:
    code, said = dmle_lines("trace", "--run", tmp_path, "--sampels", "3")
    assert code != 0
    assert "--samples" in " ".join(said)
    assert list(tmp_path.iterdir()) == []


# The rest.


def inputs_of(folder: Path, model: Path) -> list[str | Path]:
    """Flags: a run folder, the tiny model on the CPU, and the rules that lie beside the run."""
    run, rules = folder / "run", folder / "rules.json"
    return ["--run", run, "--model", model, "--rules", rules, "--device", "cpu"]


def test_trace_tells_what_it_did_and_skipped(
    dmle_lines: Command, rules: Sequence[Rule], model_folder: Path, tmp_path: Path
) -> None:
    dump_rules(rules[1:], tmp_path / "rules.json")
    common = inputs_of(tmp_path, model_folder)
    flags = [
        "--samples",
        "2",
        "--positions",
        "subject_last,last",
        "--set",
        "trace.answer=truth",
    ]
    code, said = dmle_lines("trace", *common, *flags)
    text = "\n".join(said)
    assert code == 0
    assert "1 prompts traced" in text and "; 1 skipped" in text
    assert (
        "skipped cube-volume/formula: rule 'cube-volume' has no true answer for its formula" in text
    )
    assert "route: fast (self-check passed); method: exact" in text
    assert "2 noise samples; positions: subject_last last" in text
    maps = effects.load(tmp_path / "run" / "effects.nc")
    assert maps.attrs["n_skipped"] == 1 and maps["rule"].values.tolist() == ["cube-volume"]
    assert load_rules(tmp_path / "run" / "rules.json").rules == tuple(rules[1:])
    # The same folder with other settings: refused in one line, and taken with --overwrite.
    code, said = dmle_lines("trace", *common, "--samples", "3")
    assert code == 2 and said[-1].startswith("error: ") and "--overwrite" in said[-1]
    code, _ = dmle_lines("trace", *common, "--samples", "3", "--overwrite")
    assert code == 0 and effects.load(tmp_path / "run" / "effects.nc").sizes["sample"] == 3


def test_trace_says_what_screening_saved_and_missed(
    dmle_lines: Command, rules: Sequence[Rule], model_folder: Path, tmp_path: Path
) -> None:
    dump_rules(rules[:1], tmp_path / "rules.json")
    common = inputs_of(tmp_path, model_folder)
    flags = ["--samples", "6", "--positions", "all", "--method", "screen", "--memory", "1MiB"]
    code, said = dmle_lines("trace", *common, *flags, "--metrics", "sum_log_prob,first_token_prob")
    text = "\n".join(said)
    assert code == 0 and "method: screen" in text
    maps = effects.load(tmp_path / "run" / "effects.nc")
    assert maps["metric"].values.tolist() == ["sum_log_prob", "first_token_prob"]
    shares, missed = (
        [float(value) for value in maps[name].values.ravel()]
        for name in ("exact_share", "missed_mass")
    )
    assert len(shares) == 3
    wanted = (
        f"run exactly: {np.mean(shares):.0%} of the site and sample runs of the exact sweep;"
        " absolute effects wrong by"
    )
    assert wanted in text and f"{np.mean(missed):.0%} on average, {max(missed):.0%} at most" in text


def test_an_interrupt_says_how_to_continue(dmle_lines: Command, tmp_path: Path) -> None:
    pipe = tmp_path / "settings.yaml"
    os.mkfifo(pipe)
    reader = threading.get_ident()

    def interrupt_the_reader() -> None:
        opened, end = None, time.monotonic() + 60
        while opened is None and time.monotonic() < end:
            try:
                opened = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # works once the command reads
            except OSError:
                time.sleep(0.01)
        signal.pthread_kill(reader, signal.SIGINT)
        # A signal just before the read begins does not end it; the closed pipe does, and then the
        # signal is seen.
        if opened is not None:
            os.close(opened)

    # Tests that run in the background of a shell inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt_the_reader)
    thread.start()
    try:
        code, said = dmle_lines("trace", "--run", tmp_path / "run", "--config", pipe)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert said == ["stopped in set-up; run the same command again to continue"]


@pytest.mark.parametrize("arguments", [["--help"], ["trace", "--help"], ["run", "--help"]])
def test_help_is_quick_and_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, time\nfrom interp.app.commands import main\nsys.argv = ['dmle',"
        f" *{arguments}]\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not"
        " stop.code\nheavy = {'torch', 'transformers', 'transformer_lens', 'xarray',"
        " 'matplotlib'} & set(sys.modules)\nsys.stderr.write(f'{time.process_time()}"
        " {sorted(heavy)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    seconds, _, heavy = done.stderr.partition(" ")
    assert heavy == "[]"
    assert float(seconds) < 2
    wanted = ("trace", "profile", "select", "edit", "evaluate", "figures", "report", "run", "setup")
    for word in wanted if arguments == ["--help"] else ("--run", "--model", "--set", "--samples"):
        assert word in done.stdout


def test_the_last_step_points_to_the_results(tmp_path: Path) -> None:
    assert (
        _next("report", tmp_path)
        == f"Done. Open {tmp_path / 'report.html'}; figures and tables are beside it."
    )
