"""The words of the project, each once: forms, components, roles, directions, methods. No torch."""

from typing import Literal, get_args

RuleForm = Literal["formula", "description", "instance"]
FORMS: tuple[RuleForm, ...] = get_args(RuleForm)

Split = Literal["train", "validation", "test"]

ChallengeKind = Literal["fact_check", "distractor", "multi_step"]
CHALLENGES: tuple[ChallengeKind, ...] = get_args(ChallengeKind)
"""Kinds of items that whoever merely repeats an edited answer fails (`interp.rules.challenges`)."""

Component = Literal[
    "resid", "mlp", "attn", "mlp_single", "attn_single", "resid_mlp_frozen", "resid_attn_frozen"
]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""`mlp` and `attn` are windows of blocks, `…_single` one block alone; the frozen ones restore the
stream while the outputs of MLP or attention at that token stay corrupted in all later blocks."""

Role = Literal[
    "prefix",
    "subject_first",
    "subject_middle",
    "subject_last",
    "rule_word",
    "number",
    "after",
    "last",
]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a token is in its prompt. A subject of one token is `subject_last`."""
Lookup = Literal["subject_last", "rule_word_last", "mention_last", "last"]
"""The token at which an edit looks a rule up (`interp.models.tokens.lookup_span`)."""
LOOKUP = "lookup"
"""The tokens at which an edit would look the rule up, as a role of profiles."""

CorruptedSpan = Literal["subject", "subject+rule", "numbers", "content"]
Direction = Literal["denoise", "noise"]
"""`denoise`: clean states into the corrupted run; `noise`: corrupted states into the clean run."""
Method = Literal["exact", "attribution", "screen"]
Ranking = Literal["exact", "screen", "attribution", "random"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
"""How sites are ranked for curves of faithfulness, the ranking that should be best first."""
Route = Literal["auto", "fast", "generic"]
