"""The command: what it writes and says, that it goes on after a stop, and what is stale."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from interp.results import effects
from interp.rules.sources import Rule, dump_rules
from interp.tracing import rule_curves

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
SETTINGS = (
    "trace.metrics=negative_kl",
    "trace.answer=truth",
    "trace.samples=2",
    "trace.answer_tokens=2",
    "faithfulness.shares=[0.1,0.5]",
)


@pytest.fixture
def common(rules: Sequence[Rule], model_folder: Path, tmp_path: Path) -> list[Any]:
    """Flags of every command."""
    dump_rules(rules, tmp_path / "rules.json")
    flags = ["--run", tmp_path / "run", "--rules", tmp_path / "rules.json"]
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return [*flags, "--model", model_folder, "--device", "cpu", *sets]


@pytest.mark.golden
def test_it_writes_curves_and_says_areas_and_the_order(
    dmle: Command, common: list[Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = dmle("faithfulness", *common, "--components", "mlp,attn_single")
    assert code == 0, said
    assert "4 of 5 prompts have curves, 1 are skipped" in said
    assert "skipped cube-volume/formula: rule 'cube-volume' has no true answer" in said
    assert "mlp: exact ≥ screen ≥ attribution ≥ random" in said
    data = effects.load(run / "faithfulness.nc")
    assert data["component"].values.tolist() == ["mlp", "attn_single"]
    assert data["share"].values.tolist() == [0, 0.1, 0.5, 1]
    assert data.attrs["n_skipped"] == 1 and data.attrs["weight_hash"]
    written = (run / "tables" / "faithfulness.md").read_text(encoding="utf-8")
    assert "| mlp | exact |" in written
    assert (run / "tables" / "faithfulness.tex").is_file()

    same = ("--set", "faithfulness.components=[mlp,attn_single]")
    code, said = dmle("figures", *common, *same)
    assert code == 0 and (run / "figures" / "faithfulness-attn_single.png").is_file(), said
    code, said = dmle("report", *common, *same)
    assert code == 0 and "not shown" not in said
    assert '<section id="faithfulness">' in (run / "report.html").read_text(encoding="utf-8")
    # Of other settings it is shown no more, and that is said.
    assert dmle("trace", *common)[0] == 0
    for step, words in (("figures", "not drawn: "), ("report", "not shown: ")):
        code, said = dmle(step, *common, *same, "--set", "faithfulness.seeds=5")
        assert code == 0 and words in said and "faithfulness.seeds was [0, 1, 2] when" in said
    assert '<section id="faithfulness">' not in (run / "report.html").read_text(encoding="utf-8")


def test_a_stopped_study_goes_on_and_gives_the_same(
    dmle: Command, common: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, more = tmp_path / "run", ("--components", "mlp", "--methods", "exact,random")
    whole = rule_curves.prompt_curves
    calls: list[str] = []

    def stopped(*args: Any, **options: Any) -> Any:
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(rule_curves, "prompt_curves", stopped)
    code, said = dmle("faithfulness", *common, *more)
    assert code == 130 and "stopped in faithfulness; run the same command again" in said
    assert len(list((run / "faithfulness").glob("*.nc"))) == 2
    assert not (run / "faithfulness.nc").exists()
    code, said = dmle("faithfulness", *common, *more)
    assert code == 0, said
    assert len(calls) == 3 + 3  # three prompts were left
    first = (run / "faithfulness.nc").read_bytes()
    for path in (run / "faithfulness").glob("*.nc"):
        path.unlink()
    assert dmle("faithfulness", *common, *more)[0] == 0
    assert (run / "faithfulness.nc").read_bytes() == first

    # A damaged piece is refused by name, and with other settings nothing old is shown.
    piece = next((run / "faithfulness").glob("*.nc"))
    piece.write_bytes(piece.read_bytes()[:-100])
    code, said = dmle("faithfulness", *common, *more)
    assert code == 2 and str(piece) in said and "dmle faithfulness --run" in said
    code, said = dmle("faithfulness", *common, *more, "--set", "trace.direction=noise")
    assert code == 2 and "set trace.direction=denoise" in said
