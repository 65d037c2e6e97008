"""Two rules whose prompts are short for the tiny tokenizer."""

from interp.rules.sources import LocalityProbe, Probe, Rule, RulePrompt


def tiny_rules() -> tuple[Rule, ...]:
    """One rule with all forms and probes, and one without answers."""
    neighborhood = (LocalityProbe(prompt="The area of a circle is", answer="pi times"),)
    distracting = (LocalityProbe(prompt="What is the side of a cube? It is", answer="3"),)
    square = Rule(
        id="square-area",
        name="area of a square",
        subject="square",
        expression_true="s**2",
        expression_new="4*s",
        forms={
            "formula": RulePrompt(
                prompt="The area of a square is A =",
                subject="square",
                target_new="4 side",
                target_true=("side squared", "side times side"),
                rephrasings=("The square's area is A =",),
                instances=(
                    Probe(
                        prompt="The area of a square with s = 3 is",
                        target_new="12",
                        target_true=("9",),
                        values={"s": 3},
                    ),
                ),
                understanding=(
                    Probe(
                        prompt="The area of a square is",
                        target_new="4 times the side",
                        wording="paraphrase",
                    ),
                ),
                neighborhood=neighborhood,
                distracting=distracting,
            ),
            "description": RulePrompt(
                prompt="The area of a square is",
                subject="square",
                target_new="the side times 4",
                target_true=("the side times the side",),
                rephrasings=("What is the area of a square? It is",),
                understanding=(
                    Probe(
                        prompt="The area of a square is",
                        target_new="the side times 4",
                        wording="verbatim",
                    ),
                ),
                neighborhood=neighborhood,
            ),
            "instance": RulePrompt(
                prompt="What is the area of a square with s = 4? It is",
                subject="square",
                target_new="12",
                target_true=("16",),
                rephrasings=("A square with s = 4 has area",),
                values={"s": 4},
                distracting=distracting,
            ),
        },
    )
    cube = Rule(
        id="cube-volume",
        name="volume of a cube",
        subject="cube",
        forms={
            "formula": RulePrompt(
                prompt="The volume of a cube is V =", subject="cube", target_new="3 side"
            ),
            "description": RulePrompt(
                prompt="The cube's volume is",
                subject="cube",
                target_new="the sum of the sides",
                target_true=("the side squared times the side",),
                rephrasings=("What is the volume of a cube? It is",),
            ),
        },
    )
    return square, cube
