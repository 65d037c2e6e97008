"""Text to token ids and back, as a model's tokenizer does it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from interp.errors import InputError, ModelError
from interp.models.base import ModelBase
from interp.rules.joining import join, without_last_space
from interp.rules.scripts import checked

AFTER_SPACED, AFTER_UNSPACED = ("a", "0", ".", ")", "x", "\n"), ("\n", "(", "[", "a", "0", "。")
"""Signs that an answer is tokenised behind, with a space before it and without."""


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text, with the character range of each token (special tokens: empty
    ranges).
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class ModelText(ModelBase):
    """Prompts and answers as token ids, and token ids as text."""

    def encode(self, text: str) -> Encoding:
        """Token ids of a prompt as the model expects it (with a BOS token where its tokenizer adds
        one).

        Neither the last space of a prompt nor a token that the tokenizer appends (EOS) is among
        them: what continues the prompt begins there (see `interp.rules.joining`). A BOS that the
        text begins with is not added once more.

        Raises:
            TextError: The text is no Unicode text.
        """
        got = self.tokenizer(
            without_last_space(checked(text, "a text")), return_offsets_mapping=True
        )
        ids, offsets = got["input_ids"], got["offset_mapping"]
        before, after = self._added
        end = len(ids) - after
        first = (
            before
            if before and ids[:before] == ids[before : 2 * before] and 2 * before <= end
            else 0
        )
        return Encoding(
            text, tuple(ids[first:end]), tuple((int(a), int(b)) for a, b in offsets[first:end])
        )

    def encode_continuation(
        self, text: str, prompt: str | None = None, space: bool | None = None
    ) -> tuple[int, ...]:
        """Token ids of an answer as it continues a prompt (see `interp.rules.joining`), no special
        tokens.

        They are those of prompt and answer as one text. Where a token of that text would reach over
        their border, they are those that the answer has behind another sign, so that the prompt's
        tokens stay as they are.

        Args:
            text: The answer.
            prompt: The prompt. Default: any that ends in a letter of a script with spaces.
            space: Whether a space is between them. Default: as `interp.rules.joining` decides.

        Raises:
            ModelError: The tokenizer has no border there, whatever stands before, or the answer
                holds the text of a special token.
            TextError: The answer is blank or no Unicode text.
        """
        joined = join("a" if prompt is None else prompt, text, space)
        if typed := self.special_texts(joined.answer):
            raise ModelError(
                f"the answer {text!r} holds {typed[0]!r}, which is a special token of {self.name};"
                " leave it out"
            )
        if prompt is not None:
            head, whole = self.encode(joined.prompt).ids, self.encode(joined.text).ids
            if whole[: len(head)] == head and len(whole) > len(head):
                return whole[len(head) :]
        return self._in_a_text(joined.answer)

    def _in_a_text(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer that stands, with its leading space, behind some sign that it does
        not merge with.

        They are cut off an encoding that starts with that sign, so that tokenizers which treat the
        start of a text specially (SentencePiece) give what they would in the middle of a sentence.
        """
        spaced = answer[0].isspace()
        tried = []
        for sign in AFTER_SPACED if spaced else AFTER_UNSPACED:
            head, whole = (
                self.tokenizer(t, add_special_tokens=False)["input_ids"]
                for t in (sign, sign + answer)
            )
            if head and whole[: len(head)] == head and len(whole) > len(head):
                return tuple(whole[len(head) :])
            tried.append(whole)
        raise ModelError(
            f"{self.name}: cannot find where {answer.strip()!r} starts"
            f" {'after' if spaced else 'without'} a space; got tokens {tried[0]}"
        )

    @property
    def end_token(self) -> int:
        """Id of the token that ends a text.

        Raises:
            InputError: The tokenizer has none.
        """
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError(
                f"the tokenizer of {self.name} has no end-of-text token (eos_token); name one in"
                " its tokenizer_config.json, or leave edit.end_token out"
            )
        return end

    @cached_property
    def _added(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and behind every text."""
        core, whole = (
            self.tokenizer("a", add_special_tokens=special)["input_ids"]
            for special in (False, True)
        )
        for before in range(len(whole) - len(core) + 1):
            if whole[before : before + len(core)] == core:
                return before, len(whole) - len(core) - before
        return 0, 0

    def special_texts(self, text: str) -> list[str]:
        """Special tokens of the tokenizer that are written out in a text, in the order of the
        vocabulary.
        """
        return [name for name in self._special_texts if name in text]

    @cached_property
    def _special_texts(self) -> list[str]:
        unknown = getattr(self.tokenizer, "unk_token", None)
        tokens = sorted(self.tokenizer.added_tokens_decoder.items())
        names = [
            str(token.content)
            for _, token in tokens
            if token.special and str(token.content) != unknown
        ]
        # A sign alone or a line break may be both: some tokenizers end texts with one.
        return [name for name in names if len(name.strip()) > 1]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, exactly (no clean-up of spaces), special tokens left out."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """Text of token ids as they continue a prompt: some tokenizers leave out a space at the
        start of a text.
        """
        head = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        before, whole = self.decode(head), self.decode([*head, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)

    def token_texts(self, encoding: Encoding) -> list[str]:
        """What each token covers in the text; special tokens by their name."""
        names = self.tokenizer.convert_ids_to_tokens(list(encoding.ids))
        return [
            encoding.text[a:b] or str(name)
            for (a, b), name in zip(encoding.offsets, names, strict=True)
        ]
