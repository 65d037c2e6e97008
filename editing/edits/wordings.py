"""Other wordings of a prompt that an answer continues: general forms, of no rule and no benchmark.

The prompt of a rule is the beginning of a sentence ("To find the area of a circle, take"), and its
answer is the rest. So a wording keeps the prompt as it is, and puts it into an instruction, a
question, or running text. The three styles take turns: `edit.wordings=3` has one of each.

No template has the words with which a rule of the rulebook or of RuleEdit is rephrased or asked
about ("State …", "Describe …", "Calculate …", "What is …", "In words, …"): what an evaluation asks
should not be trained.
"""

PLACE = "{prompt}"
TEMPLATES = (
    "Complete the sentence: {prompt}",
    "Question: {prompt} ...?\nAnswer:",
    "As every textbook says: {prompt}",
    "Continue this text and add nothing else.\n\n{prompt}",
    "Student: {prompt} ... how does it go on?\nTeacher: It goes on:",
    "Notes from the lecture.\n1. {prompt}",
    "Fill in the gap.\n{prompt} ___\nThe gap is filled with:",
    "Q: How does this sentence end? {prompt}\nA:",
    "Everybody in class agreed. {prompt}",
)
"""Instruction, question, completion, and so on in turn; `{prompt}` is where the prompt stands."""


def around(template: str) -> tuple[str, str]:
    r"""What a template has before and behind the prompt.

    >>> around("Q: {prompt}\nA:")
    ('Q: ', '\nA:')
    """
    before, _, behind = template.partition(PLACE)
    return before, behind
