"""`dmle edit --prompt`: a prompt of one's own is edited, shown, saved and exported."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from editing.edits.delta import EditDelta
from interp.models.loading import load
from tests.unit.editing.conftest import LINES

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
PROMPT, NEW = "The area of a square is", "twelve"


@pytest.fixture
def given(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The model, and statistics that are measured at once."""
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    covariance = {"corpus": "lines.txt", "tokens": 450, "shrinkage": 0.05}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"covariance": covariance}), encoding="utf-8")
    prompt = "--prompt", PROMPT, "--new", NEW
    return ["edit", *prompt, "--config", "own.yaml", "--model", str(model_folder)]


STRONG = [
    *("--layers", "0-2", "--set", "edit.options.learning_rate=0.02"),
    *("--set", "edit.options.stop_loss=0.01", "--set", "edit.options.steps=200"),
]


# PEFT asks transformers for a name that it gives up.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_new_answer_is_given_and_the_edit_saved(
    given: list[str], dmle: Command, tmp_path: Path
) -> None:
    code, said = dmle(*given, *STRONG, "--export", "edited", "--export-adapter", "adapter")
    assert code == 0, said
    lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    assert lines["wanted"] == "'twelve'"
    assert lines["after"].strip("'\" ").startswith("twelve")
    assert not lines["before"].strip("'\" ").startswith("twelve")
    delta = EditDelta.load(tmp_path / "edit.safetensors")
    assert delta.report.editor == "ft_whitened" and delta.report.losses[-1] < 0.5

    # The folder and the adapter are the edited model.
    model = load(given[given.index("--model") + 1], check=False)
    ids = torch.tensor([model.encode(PROMPT).ids])
    with torch.no_grad(), delta.applied(model):
        expected = model.logits(ids)
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    base = AutoModelForCausalLM.from_pretrained(given[given.index("--model") + 1])
    with torch.no_grad():
        torch.testing.assert_close(folder(ids).logits, expected, rtol=1e-4, atol=1e-4)
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(ids).logits
    # One percent of an update may be cut off.
    assert (adapted - expected).norm() < 0.05 * expected.norm()
    assert "adapter (PEFT)" in lines and "which cuts off" in lines["adapter (PEFT)"]

    code, said = dmle(*given)
    assert code == 2 and "edit.safetensors is there already; give another --out" in said
    assert dmle(*given, "--out", "other.safetensors")[0] == 0


def test_a_prompt_that_is_kept_is_continued_as_before(
    given: list[str], dmle: Command, tmp_path: Path
) -> None:
    kept = "The area of a circle is"
    model = load(given[given.index("--model") + 1], check=False)
    (ids,) = model.generate([model.encode(kept).ids], 8)
    moved = {}
    for name, more in (("alone", []), ("kept", ["--keep", kept, "--keep", "A cube"])):
        code, said = dmle(*given, *STRONG, *more, "--out", f"{name}.safetensors")
        assert code == 0 and "after: ' twelve" in said, said
        delta = EditDelta.load(tmp_path / f"{name}.safetensors")
        with torch.no_grad(), delta.applied(model):
            again = model.generate([model.encode(kept).ids], 8)[0]
        moved[name] = sum(a != b for a, b in zip(ids, again, strict=False))
        assert len(delta.report.retained) == len(more) // 2
    assert moved["kept"] < moved["alone"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--editors", "memit,ft"], "edited by one editor, got memit, ft"),
        (["--editors", "memit"], "memit looks a rule up at its subject: give --subject"),
        (["--editors", "memit", "--subject", "pyramid"], "pyramid"),
        (["--editors", "ice", "--export", "edited"], "ice writes no weights"),
        (["--editors", "ice", "--keep", "The cube"], "--keep: ice cannot honour it; alphaedit"),
        (["--editors", "nobody"], "no editor or arm 'nobody'"),
        (["--export-adapter", "."], "is there already; give a new folder"),
    ],
)
def test_what_cannot_work_is_said_before_the_model_is_loaded(
    more: list[str], said: str, given: list[str], dmle: Command, tmp_path: Path
) -> None:
    arguments = [*given[:-1], "no-such-model"]
    code, text = dmle(*arguments, *more)
    assert code == 2 and said in text and "no-such-model" not in text
    assert not (tmp_path / "edit.safetensors").exists()


def test_a_prompt_needs_its_new_answer(dmle: Command) -> None:
    code, said = dmle("edit", "--prompt", PROMPT, "--model", "no-such-model")
    assert code == 2 and "--new is missing or empty: give a prompt and its new answer" in said
    code, said = dmle("edit", "--new", NEW, "--prompt", " ", "--model", "no-such-model")
    assert code == 2 and "--prompt is missing or empty" in said


def test_another_editor_with_its_subject(given: list[str], dmle: Command, tmp_path: Path) -> None:
    more = ["--editors", "memit", "--subject", "square", "--layers", "1-2"]
    code, said = dmle(*given, *more, "--set", "edit.steps=3", "--out", "memit.safetensors")
    assert code == 0, said
    assert EditDelta.load(tmp_path / "memit.safetensors").report.layers == [1, 2]
