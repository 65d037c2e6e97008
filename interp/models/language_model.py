"""A language model as a TransformerLens bridge: token ids in, logits and hook values out.

Only the modules of this room import TransformerLens or Hugging Face's transformers. Everything else
sees `LanguageModel`, with parameters by their Hugging Face names. What it can do is in its bases:
text (`interp.models.text`), names and matrices (`parts`), runs (`runs`), continuations
(`generation`), sizes (`base`).

Weights stay those of the Hugging Face model (no folding, no centring: TransformerLens's
compatibility mode is never switched on), attention is the eager one, and the model is in evaluation
mode without gradients. At load a self-check verifies, with numbers, that the bridge gives the
Hugging Face logits, that ``resid_pre + attn_out + mlp_out = resid_post``, and that ``key @ W_out (+
bias)`` is the MLP output; a model that fails is refused, since tracing and editing it would be
silently wrong.

Importing this module takes seconds (TransformerLens), so command-line code imports it late.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, GenerationConfig

from interp.errors import ModelError
from interp.models.bridge_repairs import repair
from interp.models.finite import require_finite
from interp.models.folder import GENERATION, copy_companions, replaced
from interp.models.generation import ModelGeneration
from interp.models.identity import model_hash, settings_digest
from interp.models.lengths import Lengths
from interp.models.quiet import quiet
from interp.models.refusals import refusal
from interp.models.self_check.basis import check_rows
from interp.models.self_check.check import SelfCheck, foreign_errors, self_check
from interp.models.self_check.device import check_device
from interp.models.text import ModelText


class LanguageModel(ModelGeneration, ModelText):
    """A causal language model with named hooks and named parameters.

    Attributes:
        name: What the user called it.
        weight_hash: The model's identity as loaded, 16 hex digits: it changes with everything that
            changes its numbers, that is parameters and persistent buffers (values and number
            format), configuration, tokenizer and the tokens that end a text; not with names,
            places, padding or sampling settings. See `interp.models.identity`.
        folder: Where it was loaded from, with all that came beside the weights; None for a model
            made in memory.
        parameters: Hugging Face parameter name → live parameter.
        check: The self-check's numbers; None if it was skipped.
        lengths: Lengths at which the model changes what it does.
        ends: Tokens that end a text.
    """

    def __init__(
        self,
        hf_model: Any,
        tokenizer: Any,
        name: str,
        *,
        check: bool = True,
        folder: Path | None = None,
    ) -> None:
        """Wrap a Hugging Face model (it is modified in place, as TransformerLens bridges do).

        Raises:
            ModelError: The weights are quantised, the tokenizer has no offsets, or the self-check
                fails.
        """
        self.parameters: dict[str, nn.Parameter] = dict(hf_model.named_parameters())
        _check_pieces(name, tokenizer, self.parameters)
        self.name, self.folder, self.tokenizer = name, folder, tokenizer
        self.config, self._buffers = hf_model.config, _persistent_buffers(hf_model)
        # As they came, for export: both are changed below.
        self._generation, self._own_config = copy.deepcopy(
            (hf_model.generation_config, hf_model.config)
        )
        self.ends = _end_tokens(hf_model.generation_config, tokenizer)
        self._settings = settings_digest(self.config, tokenizer, self.ends)
        self.weight_hash = self.current_hash()
        hf_model.eval().requires_grad_(False)
        # A checkpoint's own settings (a repetition penalty, say) would make "greedy" something
        # else.
        hf_model.generation_config = GenerationConfig(eos_token_id=self.ends or None)
        self.lengths = Lengths.of(hf_model)
        self._long: dict[int, bool] = {}
        ids, expected = self._first_run(hf_model, with_logits=check)
        apart = 0.0 if expected is None else check_device(self, hf_model, ids)
        self._names = {id(p): n for n, p in self.parameters.items()}
        self.bridge: Any = self._wrapped(hf_model)
        self._note_returned()
        self._hf_model: Any = hf_model
        self.check: SelfCheck | None = None
        if expected is not None:
            self.check = replace(self_check(self, ids, expected), device=apart)

    def _first_run(self, hf_model: Any, *, with_logits: bool) -> tuple[Tensor, Tensor | None]:
        """Tokens of the self-check, and their logits before wrapping if they are wanted."""
        architecture = type(hf_model).__name__
        with (
            refusal(f"{self.name}: {architecture} cannot run a row of tokens", "use another model"),
            foreign_errors(self.name),
        ):
            ids = check_rows(self)
            if not with_logits:
                return ids, None
            with torch.no_grad():
                expected: Tensor = hf_model(ids).logits
            require_finite(expected, "a first run", self)
        return ids, expected

    def _wrapped(self, hf_model: Any) -> Any:
        """The bridge around a Hugging Face model."""
        architecture = type(hf_model).__name__
        # from_config leaves this empty, and the bridge looks the architecture up there.
        hf_model.config.architectures = [architecture]
        with refusal(
            f"{self.name}: TransformerLens cannot wrap {architecture}", "use another model"
        ):
            return build_bridge_from_module(
                hf_model,
                architecture,
                hf_config=hf_model.config,
                tokenizer=None,
                post_adapter_hook=lambda adapter: repair(adapter, self.config.get_text_config()),
            )

    def current_hash(self) -> str:
        """The identity with the parameters as they are now; `weight_hash` unless an edit is in
        force.
        """
        return model_hash(self._settings, {**self._buffers, **self.parameters})

    def export(self, folder: Path) -> None:
        """Write the model as it is now (edits applied) as a Hugging Face folder, with everything
        that came with it.

        Generation settings, chat template, tokenizer, processor files and licences are those of the
        folder it was loaded from, as they were. A model folder that is there is replaced.

        Args:
            folder: A new or empty folder, or one with an older export; not the one the model was
                loaded from.

        Raises:
            ModelError: The folder holds something else, or is the model's own.
        """
        folder = Path(folder)
        own = self.folder if self.folder is not None and self.folder.exists() else None
        if own is not None and folder.exists() and folder.samefile(own):
            raise ModelError(
                f"{folder} is where {self.name} was loaded from, and would be lost; give another"
                " folder"
            )
        # Wrapping renames the modules, which breaks save_pretrained.
        clean = self.clean_copy()
        # Ours are written below: the writer refuses what many checkpoints have, a temperature
        # without sampling.
        clean.generation_config = GenerationConfig()
        with (
            replaced(folder) as partial,
            quiet(),
            refusal(f"cannot write {folder}", "make room, or give another folder"),
        ):
            clean.save_pretrained(partial)
            (partial / GENERATION).unlink(missing_ok=True)
            self._write_companions(partial)

    def _write_companions(self, folder: Path) -> None:
        """What lies beside the weights: as it came with them, or made anew."""
        if self.folder is not None and self.folder.is_dir():
            copy_companions(self.folder, folder)
            return
        self.tokenizer.save_pretrained(folder)
        if self._generation is not None:
            self._generation.to_json_file(folder / GENERATION)

    def clean_copy(self) -> Any:
        """The Hugging Face model as it was before wrapping, without hooks, on the same memory.

        Its parameters are new objects without gradients that share the storage of ours: what writes
        one writes the other, and what is added to the module (adapters) leaves ours alone. In
        evaluation mode.

        Raises:
            ModelError: The configuration makes a model with other parameters than this one has.
        """
        config = copy.deepcopy(self._own_config)
        # Parameters without memory, but real buffers: most are not in the state.
        with torch.random.fork_rng(), init_empty_weights(include_buffers=False):
            clean: Any = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation="eager"
            )
        state = {name: parameter.detach() for name, parameter in self.parameters.items()}
        state |= {name: buffer.detach().clone() for name, buffer in self._buffers.items()}
        clean.load_state_dict(state, strict=False, assign=True)
        clean.tie_weights()
        missing = sorted(name for name, parameter in clean.named_parameters() if parameter.is_meta)
        if missing:
            raise ModelError(
                f"{self.name}: cannot be rebuilt, parameters without a value: {missing[:3]}"
            )
        return clean.to(self.device).eval().requires_grad_(False)


def _check_pieces(name: str, tokenizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{name}: its tokenizer gives no character offsets; a fast tokenizer"
            " (tokenizer.json) is needed"
        )
    if bad := [n for n, p in parameters.items() if not p.is_floating_point() or p.itemsize < 2]:
        raise ModelError(
            f"{name}: {len(bad)} quantised parameters (such as {bad[0]}); load the model"
            " unquantised, for example in bfloat16"
        )


def _persistent_buffers(hf_model: Any) -> dict[str, Tensor]:
    """Buffers that a checkpoint stores; the others follow from the configuration."""
    stored = hf_model.state_dict().keys()
    return {name: buffer for name, buffer in hf_model.named_buffers() if name in stored}


def _end_tokens(settings: GenerationConfig | None, tokenizer: Any) -> list[int]:
    """Every token that ends a text: chat models name more than the tokenizer's one.

    Raises:
        ModelError: The generation settings name something that is no token id.
    """
    named = getattr(settings, "eos_token_id", None)
    ends = [*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id]
    ends = [end for end in ends if end is not None]
    if bad := [end for end in ends if not isinstance(end, int) or isinstance(end, bool) or end < 0]:
        raise ModelError(
            f"generation_config.json names {bad[0]!r} as eos_token_id; token ids are needed (0 or"
            " above)"
        )
    return sorted(set(ends))
