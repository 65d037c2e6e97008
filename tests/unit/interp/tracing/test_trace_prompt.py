"""`dmle trace-prompt`: what is refused before a model is loaded, and what the map, the report
and the figure say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from figures import effect_map
from interp.config import TraceConfig
from interp.results import effects, plots
from interp.tracing import one_prompt
from interp.tracing.one_prompt import PromptRequest

Command = Callable[..., tuple[int, list[str]]]
PROMPT = "The area of a square is"
OWN = ["trace-prompt", "--prompt", PROMPT, "--subject", "square"]


def prompt_map(*, corrupted: tuple[float, float] = (-3.1, -2.9)) -> xr.Dataset:
    """Total effect 2; restoring helps by 1.5 in layer 2 at the corrupted token and by 0.5 in
    layer 3 at the last."""
    effect = np.zeros((3, 4, 4))
    effect[:, 2, 2], effect[:, 3, 3], effect[:, 0, 3] = 1.5, 0.5, -0.25
    effect[:, :, 1] = np.nan
    base = np.array(corrupted)
    return effects.effect_map(
        effect[..., None] + base,
        -1.0,
        base,
        components=("resid", "mlp", "attn"),
        tokens=("The", " $a$", " France", " is"),
        roles=("prefix", "prefix", "subject_last", "last"),
        is_corrupted=(False, False, True, False),
        prompt="The $a$ France is",
        answer=" Paris",
        attrs={"window": 2, "answer_source": "greedy"},
    )


# Each: arguments after those of OWN that are left (a later flag replaces an earlier one), and what
# is said.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "another subject": (
        ["trace-prompt", PROMPT, "--subject", "circle"],
        "'circle' is not in the prompt 'The area",
    ),
    "empty subject": (
        ["trace-prompt", "--prompt", PROMPT, "--subject", " "],
        "--subject is ' '; text is needed",
    ),
    "empty prompt": (["trace-prompt", "", "--subject", "a"], "--prompt is ''; text is needed"),
    "empty answer": ([*OWN, "--answer", ""], "--answer is ''; text is needed"),
    "no such word": (
        [*OWN, "--words", "area,volume"],
        "--words: 'volume' is no word of the prompt",
    ),
    "stop word": ([*OWN, "--words", "of"], "--words: 'of' names nothing"),
    "suffix of the plot": (
        [*OWN, "--plot", "map.jpeg"],
        "ends in '.jpeg'; give a file ending in .png or .pdf",
    ),
    "no suffix": ([*OWN, "--plot", "map"], "ends in ''; give a file ending in .png or .pdf"),
    "no folder of the plot": (
        [*OWN, "--plot", "none/map.png"],
        "--plot none/map.png: there is no folder none; make it",
    ),
    "no folder of the map": (
        [*OWN, "--out", "none/map.nc"],
        "--out none/map.nc: there is no folder none; make it",
    ),
    "folder as map": (
        [*OWN, "--out", "folder"],
        "--out folder is a folder; give the name of a file",
    ),
    "figure as map": (
        [*OWN, "--out", "map.png"],
        "--out map.png is for the effect map, a NetCDF file",
    ),
    "somebody's file": (
        [*OWN, "--out", "notes.nc"],
        "notes.nc is there and is no effect map of one prompt",
    ),
    "counterfactual": (
        [*OWN, "--set", "trace.corruption=counterfactual"],
        "a single prompt is corrupted by noise",
    ),
    "span": ([*OWN, "--span", "cube,side"], "trace.span: 'cube', 'side' not found in the prompt"),
    "one phrase": ([*OWN, "--span", "area, sqare"], "trace.span: 'sqare' not found in the prompt"),
    "stray byte": (
        [*OWN[:2], "The ar\udce9a", "--subject", "The"],
        "--prompt is not Unicode text: character 7 is U+DCE9",
    ),
    "setting": (
        [*OWN, "--set", "trace.sample=4"],
        "unknown setting 'trace.sample': did you mean 'samples'?",
    ),
    "section": ([*OWN, "--set", "model=3"], "--set model=3: section.key=value is needed"),
}


def test_a_mistake_gives_one_line_and_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.nc").write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    program = (
        "import json, sys\n"
        "from interp.app.commands import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(line)\n"
        "    except SystemExit as stop:\n"
        "        sys.stderr.write(f'exit {stop.code}\\n')\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'matplotlib'} & set(sys.modules)\n"
        "sys.stdout.write(json.dumps(sorted(heavy)))\n"
    )
    lines = [line for line, _ in MISTAKES.values()]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert len(said) == 2 * len(MISTAKES), done.stderr
    for (name, (_, wanted)), error, code in zip(
        MISTAKES.items(), said[::2], said[1::2], strict=True
    ):
        assert error.startswith("error: ") and wanted in error, name
        assert code == "exit 2", name
    assert json.loads(done.stdout) == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["trace-prompt", "--plot", "map.png", "--subject", "a"], "--prompt"),
        (["trace-prompt", PROMPT], "--subject"),
        ([*OWN, "--run", "mine"], "--run"),
        ([*OWN, "--rules", "embedded"], "--rules"),
        ([*OWN, "--corruption", "counterfactual"], "--corruption"),
        (["trace", "--prompt", PROMPT], "--prompt"),
    ],
)
def test_flags_of_the_other_trace_are_refused_and_missing_ones_named(
    line: list[str], said: str, dmle_lines: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = dmle_lines(*line)
    assert code == 2 and said in " ".join(told)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_may_begin_with_a_hyphen(dmle_lines: Command) -> None:
    for line in (
        ["trace-prompt", "-5 + 2 =", "--subject", "x"],
        ["trace-prompt", "--prompt", "-5 + 2 =", "--subject", "-x"],
    ):
        code, told = dmle_lines(*line)
        assert code == 2 and "is not in the prompt '-5 + 2 ='" in " ".join(told)


def test_files_go_where_they_are_asked_to() -> None:
    assert PromptRequest(PROMPT, "square").map_path == Path("map.nc")
    assert PromptRequest(PROMPT, "square", plot=Path("a/b.pdf")).map_path == Path("a/b.nc")
    assert PromptRequest(PROMPT, "square", plot=Path("a/b.pdf"), out=Path("c.nc")).map_path == Path(
        "c.nc"
    )


def test_only_a_map_of_one_prompt_is_replaced_unasked(tmp_path: Path) -> None:
    request = PromptRequest(PROMPT, "square", out=tmp_path / "map.nc")
    effects.save(prompt_map(), request.map_path)
    request.check(TraceConfig())
    effects.save(effects.concat({("a", "formula"): prompt_map()}), request.map_path)
    with pytest.raises(
        ValueError, match="is no effect map of one prompt; give another by --out, or --overwrite it"
    ):
        request.check(TraceConfig())
    request.check(TraceConfig(), overwrite=True)


def test_a_plot_that_nobody_draws_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plots.find_plot("prompt").load() is effect_map.save_prompt_panel
    monkeypatch.setattr(plots, "entry_points", lambda **which: [])
    with pytest.raises(
        ValueError, match="no installed package draws 'prompt'; install this one again"
    ):
        PromptRequest(PROMPT, "square", plot=tmp_path / "map.png").check(TraceConfig())


def test_words_become_rule_words() -> None:
    assert PromptRequest(PROMPT, "square").rule.rule_words == ()
    assert PromptRequest(PROMPT, "square", words=("Area",)).rule.rule_words == ("area",)


def test_report_names_the_best_layer_of_each_token() -> None:
    said = one_prompt.report(prompt_map())
    assert said[0] == "tokens (* corrupted): 'The' ' $a$' ' France'* ' is'"
    assert said[1] == "answer: ' Paris' (the model's own greedy answer)"
    assert (
        "clean -1.000, corrupted -3.000; total effect 2.000 ± 0.100 nats (standard error over 2"
        " noise" in said[2]
    )
    assert said[3] == "traceable: yes, the total effect is above 2 standard errors"
    cells = (  # neither what is 0 nor what was not traced
        "layer 2 at ' France'* +1.500; layer 3 at ' is' +0.500"
    )
    assert said[5:] == [
        f"  resid: {cells}",
        f"  mlp (windows of 2 layers around): {cells}",
        f"  attn (windows of 2 layers around): {cells}",
    ]


def test_report_says_that_a_map_within_noise_means_nothing() -> None:
    assert (
        "traceable: NO, the total effect is not above"
        in one_prompt.report(prompt_map(corrupted=(-9, 6.9)))[3]
    )


def test_panel_shows_the_components_on_one_scale_with_prompt_and_answer() -> None:
    fig = effect_map.prompt_panel(prompt_map())
    *panels, bar = fig.axes
    titles = [ax.get_title(loc="left") for ax in panels]
    assert titles == ["residual stream", "MLP output (2 layers)", "attention output (2 layers)"]
    assert fig.get_suptitle() == "“The $a$ France is”\nanswer “Paris” (the model's own)"
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["The", "France*", "is"]
    assert {label.get_text() for label in panels[1].get_yticklabels()} == {""}
    for ax in panels:
        cells = ax.collections[0]
        assert cells.get_clim() == (-1.5, 1.5)
        np.testing.assert_allclose(
            np.asarray(cells.get_array()).reshape(3, 4)[1], [0, 0, 1.5, 0], atol=1e-6
        )
    assert bar.get_ylabel() == "indirect effect (nats per answer token)"
    assert (
        "total effect 2.00 ± 0.10 nats per answer token; 2 samples; 3 of 4 tokens traced"
        in fig.get_supxlabel().replace("\n", " ")
    )


def test_panel_of_nothing_is_refused() -> None:
    empty = prompt_map()
    with pytest.raises(ValueError, match="no token of this prompt was traced"):
        effect_map.prompt_panel(empty.assign(score=empty["score"] * np.nan))


@pytest.mark.parametrize(("suffix", "starts"), [(".png", b"\x89PNG"), (".PDF", b"%PDF")])
def test_figure_is_of_the_kind_that_its_name_says(
    suffix: str, starts: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"map{suffix}"
    effect_map.save_prompt_panel(prompt_map(), path)
    assert path.read_bytes().startswith(starts)
    assert list(tmp_path.iterdir()) == [path]


# With a model.


def test_a_prompt_is_traced_reported_and_drawn(
    dmle_lines: Command, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", model_folder, "--device", "cpu", "--samples", 2]
    code, said = dmle_lines(
        *OWN, "--words", "area", "--answer", "4 side", "--plot", "map.png", *flags
    )
    text = "\n".join(said)
    assert code == 0, text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "map.nc",
        "map.png",
    ]  # and no run folder
    traced = effects.load(tmp_path / "map.nc")
    marked = {str(t).strip() for t in traced["token"].values[traced["is_corrupted"].values]}
    assert "area" in marked and "The" not in marked
    assert (traced["answer"].item(), traced.attrs["answer_source"]) == ("4 side", "given")
    assert "rule_name" not in traced.attrs and traced.attrs["positions"] == "all"
    assert (
        not traced["score"].isnull().any()
    )  # before the first corrupted token it is the corrupted score
    assert "answer: '4 side' (given)" in text and "' area'*" in text
    assert f"{effects.total_effect(traced)['total_effect'].item():.3f} ±" in text
    assert said[-2:] == ["effect map: map.nc", "figure: map.png"]


def test_the_greedy_answer_ends_with_its_first_line(
    dmle_lines: Command, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "--model",
        model_folder,
        "--device",
        "cpu",
        "--samples",
        2,
        "--set",
        "trace.components=[mlp]",
    ]
    metrics = ["--metrics", "mean_log_prob,negative_kl", "--positions", "last"]
    code, said = dmle_lines(*OWN, "--out", "own.nc", *metrics, *flags)
    assert code == 0, said
    traced = effects.load(tmp_path / "own.nc")
    assert traced.attrs["answer_source"] == "greedy" and traced.attrs["positions"] == "last"
    assert traced.sizes["metric"] == 2 and "\n" not in traced["answer"].item().strip()
    assert any("(the model's own greedy answer)" in line for line in said)
    assert any(line.startswith("  mlp: ") or line.startswith("  mlp (") for line in said)
