"""Arrays are checked in every call of our functions, and nothing else is."""

import pytest
import torch

from interp.models.loading import LanguageModel
from interp.tracing.metrics import answer_log_probs


def test_functions_of_arrays_are_wrapped_and_others_are_not() -> None:
    wrapped = LanguageModel.logits, LanguageModel.capture, answer_log_probs
    assert all(hasattr(function, "__wrapped__") for function in wrapped)
    plain = LanguageModel.export, LanguageModel.current_hash
    assert not any(hasattr(function, "__wrapped__") for function in plain)


def test_a_wrong_shape_is_an_error(tiny_llama: LanguageModel) -> None:
    with pytest.raises(Exception, match="Type-check error whilst checking the parameters"):
        tiny_llama.logits(torch.zeros(3, dtype=torch.long))
    with pytest.raises(Exception, match="Type-check error whilst checking the parameters"):
        tiny_llama.logits(torch.zeros(1, 3))
