"""What TransformerLens's adapters get wrong for models that work once it is put right.

Each repair is checked like everything else: the self-check compares the bridge with the model
before wrapping.
"""

from typing import Any

from torch import Tensor, nn


def repair(adapter: Any, config: Any) -> None:
    """Put an adapter right before it wraps a model.

    Args:
        adapter: TransformerLens's adapter; changed in place.
        config: The model's Hugging Face configuration.
    """
    if getattr(config, "model_type", "") == "falcon" and config.new_decoder_architecture:
        _repair_new_falcon(adapter, config)


def _repair_new_falcon(adapter: Any, config: Any) -> None:
    """Falcon's newer decoder keeps queries, keys and values group by group; the adapter reads them
    as three blocks.

    A group of heads shares one key and one value. They are repeated for each head, as the model
    itself does in every run, so that the adapter sees plain attention of as many keys as queries.
    """
    adapter.cfg.n_key_value_heads = None
    block = adapter.component_mapping["blocks"].submodules
    # Whether a block has one norm or two is a setting of its own, which the adapter takes for
    # granted.
    block["ln1"].name = "ln_attn" if config.num_ln_in_parallel_attn == 2 else "input_layernorm"
    groups, heads = config.num_kv_heads, config.num_attention_heads

    def split(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        fused = attention.query_key_value
        pieces = _heads(fused.weight.detach(), groups, heads)
        biases = None if fused.bias is None else _heads(fused.bias.detach(), groups, heads)
        first, second, third = (
            _linear(pieces[i], None if biases is None else biases[i]) for i in range(3)
        )
        return first, second, third

    block["attn"].split_qkv_matrix = split


def _heads(fused: Tensor, groups: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all query heads, and those of the key and the value of each, from a fused matrix
    or bias.
    """
    each = heads // groups
    by_group = fused.unflatten(0, (groups, each + 2, -1))
    shared = by_group[:, each:].unsqueeze(2).expand(-1, -1, each, *by_group.shape[2:])
    query = by_group[:, :each].flatten(0, 2)
    key, value = shared[:, 0].flatten(0, 2), shared[:, 1].flatten(0, 2)
    return query, key, value


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype
    )
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear
