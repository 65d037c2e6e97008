"""The commands `dmle rules …`: check, build, export and measure rule sources."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.app.command_line import Stopped
from interp.results.files import write_text
from interp.results.printing import command, say, shown_by, visible
from interp.rules.sources import RuleSet, counted, dump_rules, load_rules

if TYPE_CHECKING:
    from interp.rules.checks import Finding

FOUND = 1

app = App(name="rules", help="Check, build, export and measure rules.")


@app.command
def check(
    source: Annotated[
        str, Parameter(help="'embedded', a rules.json, or a RuleEdit folder or zip.")
    ] = "embedded",
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", help="Print the findings as JSON.", negative=())
    ] = False,
    strict: Annotated[
        bool, Parameter(help="Refuse records that need a repair.", negative=())
    ] = False,
    info: Annotated[
        bool, Parameter(help="Also list the findings of level info.", negative=())
    ] = False,
) -> None:
    """Check rules: numbers, expressions, units, subjects, contamination, conflicts, duplicates.

    Exits with 0 if nothing above the level info was found, with 1 if something was, and with 2 if
    the source cannot be read.

    For example:

        dmle rules check

        dmle rules check RuleEdit-200.zip --json > findings.json
    """
    from interp.rules.checks import check_rules

    rules = load_rules(source, strict=strict)
    findings = check_rules(rules)
    above = [finding for finding in findings if finding.level != "info"]
    if as_json:
        _print_json(findings)
    else:
        _print_findings(findings if info else above)
        _print_summary(source, rules, findings)
        say(f"{len(above)} findings above info", to_stdout=True)
    sys.exit(FOUND if above else 0)


def _print_json(findings: "Sequence[Finding]") -> None:
    records = [finding._asdict() for finding in findings]
    text = json.dumps(records, ensure_ascii=False, indent=1)
    # Where the stream has no character for something, JSON's own escape stands.
    if shown_by(sys.stdout, text) != text:
        text = json.dumps(records, indent=1)
    sys.stdout.write(text + "\n")


def _print_findings(findings: "Sequence[Finding]") -> None:
    for each in findings:
        line = (
            f"{each.level:7} {each.check:22} {each.where}: {each.found} (expected: {each.expected})"
        )
        say(line, to_stdout=True)


def _print_summary(source: str, rules: RuleSet, findings: "Sequence[Finding]") -> None:
    from interp.rules.checks import CHECKS, counts
    from interp.rules.checks.challenges import count_made

    title = Text(visible(f"{source}: {len(rules)} rules"))
    summary = Table("level", "check", "findings", "meaning", title=title)
    for (level, name), count in counts(findings).items():
        summary.add_row(level, name, str(count), CHECKS[name][1])
    Console(highlight=False, markup=False, emoji=False).print(summary)
    made = (f"{kind} {n} ({of} rules)" for kind, (n, of) in count_made(rules.rules).items())
    say(f"challenges: {', '.join(made)}", to_stdout=True)
    if rules.repairs:
        say(f"repairs: {counted(rules.repairs)}", to_stdout=True)


@app.command
def build(
    specs: Annotated[
        tuple[Path, ...], Parameter(help="Specification files; by default the embedded ones.")
    ] = (),
    *,
    out: Annotated[Path, Parameter(help="The rule file to write.")],
) -> None:
    """Build a rule file from specifications.

    For example:

        dmle rules build my_rules.yaml --out my_rules.json
    """
    from interp.rules.rulebook.build import build_files

    rules = build_files(specs or None)
    dump_rules(rules, out)
    say(f"{len(rules)} rules in {out}. Next: {command('dmle', 'rules', 'check', out)}")


@app.command
def export(
    folder: Annotated[Path, Parameter(help="A new folder.")],
    *,
    source: Annotated[str, Parameter(help="The rules to write.")] = "embedded",
) -> None:
    """Write rules as RuleEdit folders, for drivers that read those.

    For example:

        dmle rules export ours-as-ruleedit

        dmle rules export mine --source my_rules.json
    """
    from interp.rules.ruleedit.writing import write_ruleedit

    rules = load_rules(source)
    lost = write_ruleedit(rules, folder)
    say(f"{len(rules)} folders in {folder}")
    for line in lost:
        say(f"no place in RuleEdit for {line}")


@app.command
def stats(
    sources: Annotated[tuple[str, ...], Parameter(help="Rule sources to measure side by side.")] = (
        "embedded",
    ),
    *,
    out: Annotated[
        Path, Parameter(help="Markdown file for the table; the rows go beside it.")
    ] = Path("rulebook-stats.md"),
    model: Annotated[
        str, Parameter(help="smollm2-135m, a Hugging Face folder, or a hub name.")
    ] = "smollm2-135m",
    samples: Annotated[int, Parameter(help="Noise samples per prompt.")] = 4,
) -> None:
    """Measure how many rules a model knows, and how many can be traced.

    A stopped run continues.

    For example:

        dmle rules stats embedded RuleEdit-200.zip --out docs/rulebook-stats.md
    """
    read = [(source, load_rules(source)) for source in sources]
    try:
        _write_stats(read, out, model, samples)
    except KeyboardInterrupt as stop:
        raise Stopped("stopped; run the same command again to continue") from stop
    say(f"table: {out}")


def _write_stats(
    sources: Sequence[tuple[str, RuleSet]], out: Path, name: str, samples: int
) -> None:
    """Measure rules of each source, with a file of rows beside the table for each."""
    from tqdm import tqdm

    from interp.config import TraceConfig
    from interp.models.loading import load
    from interp.tracing.knowledge import GREEDY_TOKENS, assess_rules, table
    from interp.tracing.trace import prompts

    model, config = load(name), TraceConfig(samples=samples)
    assessed = []
    for source, rules in sources:
        title = "embedded" if source == "embedded" else Path(source).stem
        path = out.with_name(f"{out.stem}-{title}.csv")
        with tqdm(total=len(prompts(rules.rules)), desc=visible(title), unit="prompt") as bar:
            rows = assess_rules(model, rules.rules, config, path, advance=bar.update)
        assessed.append((title, rows))
    write_text(
        out,
        f"{table(assessed)}\n{model.name}, {samples} samples of noise {config.noise} on"
        f" {config.span}. Known: the greedy answer of {GREEDY_TOKENS} tokens holds the true"
        " result. Traceable: total effect (nats per answer token) above two standard errors."
        " Twin aligns: one of the prompt's counterfactual twins has as many tokens.\n",
    )
