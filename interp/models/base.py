"""What the parts of a language model share: its pieces, sizes, and what its self-check allows."""

from typing import Any

import torch
from torch import nn

from interp.errors import TooLongError
from interp.models.lengths import Lengths
from interp.models.self_check.basis import tolerance
from interp.models.self_check.check import SelfCheck
from interp.models.self_check.routes import check_long

NO_LIMIT = 2**31 - 1
"""Context length of models without one."""


class ModelBase:
    """Pieces of a `LanguageModel`, its sizes, and what its self-check allows."""

    name: str
    tokenizer: Any
    config: Any
    parameters: dict[str, nn.Parameter]
    bridge: Any
    check: SelfCheck | None
    lengths: Lengths
    ends: list[int]
    _hf_model: Any
    _names: dict[int, str]
    """Hugging Face name of a parameter, by its id."""
    _long: dict[int, bool]
    """Whether prefixes hold beyond a length, as far as it was asked."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.bridge.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def context_length(self) -> int:
        """Largest number of tokens in a row that the model was made for; `NO_LIMIT` if it has
        none (ALiBi, Mamba).
        """
        config = self.config.get_text_config()
        limits = [
            getattr(config, name, None)
            for name in ("max_position_embeddings", "n_positions", "max_seq_len")
        ]
        return next(
            (int(limit) for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT
        )

    def need_room(self, tokens: int, what: str) -> None:
        """See that a row of so many tokens fits into the model's positions.

        Raises:
            TooLongError: It does not.
        """
        if tokens > self.context_length:
            raise TooLongError(
                f"{what} takes {tokens} tokens, {self.name} was made for {self.context_length}; use"
                " a shorter text or a model with a longer context"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(iter(self.parameters.values())).dtype

    @property
    def has_prefix_cache(self) -> bool:
        """Whether keys and values of a common prefix can be computed once (verified at load)."""
        return self.check is not None and self.check.prefix_cache <= tolerance(self.dtype)

    @property
    def has_entry(self) -> bool:
        """Whether rows can join a batch at later blocks with given states (verified at load)."""
        return self.check is not None and self.check.entry <= tolerance(self.dtype)

    @property
    def pads_left(self) -> bool:
        """Whether texts of different length may be padded on the left and run together (verified
        at load).
        """
        return self.check is None or self.check.left_padding <= tolerance(self.dtype)

    def shares(self, length: int) -> bool:
        """Whether keys and values of a prefix hold for texts of so many tokens, prefix included.

        Verified at load for short texts. Beyond a length at which the model changes what it does
        (`interp.models.lengths`) it is verified when it is first asked for, by runs that are little
        longer than that length.
        """
        if not self.has_prefix_cache:
            return False
        switches = self.lengths.switches(length)
        if not switches:
            return True
        if switches[-1] not in self._long:
            whole: Any = self  # a base class of what is checked
            self._long[switches[-1]] = check_long(whole, switches[-1])
        return self._long[switches[-1]]

    def takes_fast_route(self, length: int) -> bool:
        """Whether the fast route of patching holds for texts of so many tokens."""
        return self.has_entry and self.shares(length)
