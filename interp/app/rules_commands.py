"""The commands `dmle rules …`: check, build, export and measure rule sources."""

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.errors import DmleError
from interp.results.files import write_text
from interp.results.printing import command, one_line, say, shown_by, visible
from interp.rules.sources import RuleError, RuleSet, counted, dump_rules, load_rules

FOUND, FAILED = 1, 2

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
        bool, Parameter(help="List findings of level info one by one too.", negative=())
    ] = False,
) -> None:
    """Check rules by machine: numbers, expressions, units, subjects, contamination, conflicts,
    duplicates.

    Exits with 0 if nothing above the level info was found, with 1 if something was, with 2 if the
    source cannot be read.

    For example:

        dmle rules check

        dmle rules check RuleEdit-200.zip --json > findings.json
    """
    from interp.rules.checks import CHECKS, check_rules, counts

    rules = _load(source, strict=strict)
    findings = check_rules(rules)
    above = [finding for finding in findings if finding.level != "info"]
    if as_json:
        found = json.dumps(
            [finding._asdict() for finding in findings], ensure_ascii=False, indent=1
        )
        # Where the stream has no character for something, JSON's own escape stands.
        plain = (
            found
            if shown_by(sys.stdout, found) == found
            else json.dumps(json.loads(found), indent=1)
        )
        sys.stdout.write(plain + "\n")
    else:
        listed = findings if info else above
        for finding in listed:
            said = (
                f"{finding.level:7} {finding.check:22} {finding.where}: {finding.found} (expected:"
                f" {finding.expected})"
            )
            say(said, to_stdout=True)
        summary = Table(
            "level",
            "check",
            "findings",
            "meaning",
            title=Text(visible(f"{source}: {len(rules)} rules")),
        )
        for (level, name), count in counts(findings).items():
            summary.add_row(level, name, str(count), CHECKS[name][1])
        Console(highlight=False, markup=False, emoji=False).print(summary)
        if rules.repairs:
            say(f"repairs: {counted(rules.repairs)}", to_stdout=True)
        say(f"{len(above)} findings above info", to_stdout=True)
    sys.exit(FOUND if above else 0)


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

    try:
        rules = build_files(specs or None)
        dump_rules(rules, out)
    except (RuleError, OSError) as error:
        _fail(error)
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
    from interp.rules.ruleedit import write_ruleedit

    rules = _load(source)
    try:
        lost = write_ruleedit(rules, folder)
    except (RuleError, OSError) as error:
        _fail(error)
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
        str, Parameter(help="Embedded name, Hugging Face folder, or hub name.")
    ] = "smollm2-135m",
    samples: Annotated[int, Parameter(help="Noise samples per prompt.")] = 4,
) -> None:
    """Measure how much of some rules a model knows, and how much of it can be traced.

    Rows are written as they come: a stopped run goes on.

    For example:

        dmle rules stats embedded RuleEdit-200.zip --out docs/rulebook-stats.md
    """
    from tqdm import tqdm

    from interp.config import TraceConfig
    from interp.models.loading import load
    from interp.tracing.knowledge import GREEDY_TOKENS, assess_rules, table
    from interp.tracing.trace import prompts

    read = [(source, _load(source)) for source in sources]
    try:
        language_model, config = load(model), TraceConfig(samples=samples)
        found = []
        for source, rules in read:
            name = "embedded" if source == "embedded" else Path(source).stem
            rows = out.with_name(f"{out.stem}-{name}.csv")
            with tqdm(total=len(prompts(rules.rules)), desc=visible(name), unit="prompt") as bar:
                found.append(
                    (
                        name,
                        assess_rules(language_model, rules.rules, config, rows, advance=bar.update),
                    )
                )
        write_text(
            out,
            f"{table(found)}\n{language_model.name}, {samples} samples of noise {config.noise} on"
            f" {config.span}. Known: the greedy answer of {GREEDY_TOKENS} tokens holds the true"
            " result. Traceable: total effect (nats per answer token) above two standard errors."
            " Twin aligns: one of the prompt's counterfactual twins has as many tokens.\n",
        )
    except (DmleError, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        say("stopped; run the same command again to continue")
        sys.exit(130)
    say(f"table: {out}")


def _load(source: str, *, strict: bool = False) -> RuleSet:
    try:
        return load_rules(source, strict=strict)
    except RuleError as error:
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    say(f"error: {one_line(error)}", style="red")
    sys.exit(FAILED)
