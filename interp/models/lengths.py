"""Lengths at which a model changes what it does: sliding windows, and positions that are encoded
anew for long texts.

Short runs say nothing of longer ones where a layer then forgets tokens, or where the rotary
frequencies are others. With frequencies that depend on the length of the whole text, keys computed
for the beginning of a text are not those of the text; a row in a batch is encoded by the batch's
longest; and a library may even keep what an earlier run left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_window",
    "attention_window_size",
    "attention_chunk_size",
)
"""Names that configurations give to the number of tokens that a layer looks back."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of a model, in tokens."""

    windows: tuple[int, ...] = ()
    """A run of more tokens is one in which some layer does not see all of them."""
    rope: int | None = None
    """A run of more tokens has other rotary frequencies."""
    grows: bool = False
    """Those frequencies are others for every length, not one set for all long texts."""
    growing: tuple[nn.Module, ...] = ()
    """Modules that keep the frequencies of the longest text so far."""

    @classmethod
    def of(cls, hf_model: Any) -> "Lengths":
        """Read off a Hugging Face model, before it is wrapped."""
        text = hf_model.config.get_text_config()
        windows = {
            value
            for name in WINDOWS
            if isinstance(value := getattr(text, name, None), int) and value > 0
        }
        found: list[int] = []
        growing: list[nn.Module] = []
        for module in hf_model.modules():
            for kind, length in _ropes(module, text):
                found.append(length)
                if kind == "dynamic":
                    growing.append(module)
        rope = min(found, default=None)
        return cls(tuple(sorted(windows)), rope, bool(growing), tuple(dict.fromkeys(growing)))

    def switches(self, length: int) -> list[int]:
        """The lengths below which a run of so many tokens would be another, ascending."""
        return sorted(
            each for each in {*self.windows, self.rope} if each is not None and each < length
        )

    def kind(self, length: int) -> int:
        """Rows of equal kind may run in one batch, whatever their lengths: the same frequencies
        are right for all.
        """
        if self.rope is None or length <= self.rope:
            return 0
        return length if self.grows else self.rope + 1

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which of some rows may run in one batch, in the order given."""
        found: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            found.setdefault(self.kind(length), []).append(row)
        return list(found.values())

    def forget(self) -> None:
        """Undo what a long text left behind, so that a run depends on its own length alone."""
        for module in self.growing:
            for prefix in _prefixes(module):
                buffer = getattr(module, f"{prefix}inv_freq")
                original = getattr(module, f"{prefix}original_inv_freq").to(buffer.device)
                module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
                setattr(
                    module,
                    f"{prefix}max_seq_len_cached",
                    getattr(module, "original_max_seq_len", 0),
                )


def _ropes(module: nn.Module, text: Any) -> Iterator[tuple[str, int]]:
    """Kind and length of each rotary encoding of a module that depends on the length."""
    kinds = getattr(module, "rope_type", None)
    if kinds is None:
        return
    settings = getattr(getattr(module, "config", text), "rope_parameters", None) or {}
    for layers, kind in (kinds if isinstance(kinds, dict) else {"": kinds}).items():
        own = settings.get(layers, settings) if layers else settings
        trained = (
            getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
        )
        length = own.get("original_max_position_embeddings") or trained
        if kind == "longrope":
            yield "longrope", int(length)
        elif "dynamic" in str(kind):
            trained: Any = getattr(module, "original_max_seq_len", length)
            yield "dynamic", int(trained)


def _prefixes(module: nn.Module) -> list[str]:
    kinds: Any = getattr(module, "rope_type", "")
    if isinstance(kinds, dict):
        return [f"{layers}_" for layers, kind in kinds.items() if "dynamic" in str(kind)]
    return [""]
