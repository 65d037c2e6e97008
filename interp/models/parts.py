"""The parts of a model by name: hooks, and the matrices that edits write."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import ModelError
from interp.models.base import ModelBase

PARTS = {
    "q": "attn",
    "k": "attn",
    "v": "attn",
    "o": "attn",
    "in": "mlp",
    "gate": "mlp",
    "out": "mlp",
}
"""Linear maps of a block by our names, and the component that each belongs to."""


@dataclass(frozen=True)
class DownProjection:
    """The second MLP matrix of a block, the place that locate-and-edit methods write.

    `transposed` tells the orientation of `weight`: False for `torch.nn.Linear`, (d_model, d_mlp);
    True for GPT-2's Conv1D, (d_mlp, d_model). It is read off the module's type, never guessed from
    the shape.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed: bool

    def orient(self, update: Float[Tensor, "d_model d_mlp"]) -> Tensor:
        """Give an update of shape (d_model, d_mlp) the orientation of the parameter. It is its
        own inverse: the parameter gets shape (d_model, d_mlp).
        """
        return update.T if self.transposed else update


@dataclass(frozen=True)
class Projection:
    """A linear map of a block, of which a whole parameter is the matrix.

    `transposed` is read off the module's type as in `DownProjection`.
    """

    name: str
    weight: nn.Parameter
    transposed: bool
    layer: int
    part: str
    """One of `PARTS`."""

    def orient(self, update: Float[Tensor, "d_out d_in"]) -> Tensor:
        """Give an update of shape (d_out, d_in) the orientation of the parameter."""
        return update.T if self.transposed else update


class ModelParts(ModelBase):
    """Hook names, and the linear maps of the blocks."""

    def hook(self, component: str, layer: int) -> str:
        """Hook name of what a component adds to the residual stream (`resid`: the stream after
        the block).
        """
        part = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}[
            component
        ]
        return f"blocks.{layer}.{part}"

    def key_hook(self, layer: int) -> str:
        """Hook name of the input of the down-projection: the keys of locate-and-edit methods."""
        return f"blocks.{layer}.mlp.hook_post"

    def value_hook(self, layer: int) -> str:
        """Hook name of the output of the down-projection, before any norm that the block puts
        behind the MLP.
        """
        return f"blocks.{layer}.mlp.out.hook_out"

    @property
    def embedding_hook(self) -> str:
        """Hook name of the token embeddings (before positions are added)."""
        return "hook_embed"

    def down_projection(self, layer: int) -> DownProjection:
        """The second MLP matrix of a block.

        Raises:
            ModelError: The block's MLP has no single dense down-projection (a mixture of experts,
                say).
        """
        try:
            module = self.bridge.blocks[layer].mlp.out.original_component
        except AttributeError as error:
            raise ModelError(
                f"{self.name}: block {layer} has no dense down-projection to edit, as an MLP of"
                " experts has none; use a model whose blocks have one MLP each"
            ) from error
        name = self._names[id(module.weight)]
        return DownProjection(
            name, module.weight, getattr(module, "bias", None), type(module).__name__ == "Conv1D"
        )

    def projection(self, layer: int, part: str) -> Projection:
        """A linear map of a block, by our name for it (`PARTS`).

        Raises:
            ModelError: The block has none of that name, or it is fused with others into one matrix.
        """
        if (found := self._projections.get((layer, part))) is not None:
            return found
        have = [name for at, name in self._projections if at == layer]
        raise ModelError(
            f"{self.name}: block {layer} has no projection {part!r} with a matrix of its own; it"
            f" has {', '.join(have) or 'none'}. A model that fuses several into one matrix (GPT-2,"
            " GPT-NeoX: queries, keys and values) does not offer them one by one"
        )

    def linear(self, name: str) -> Projection:
        """A linear map of a block, by the Hugging Face name of its weight.

        Raises:
            ModelError: There is no such parameter, or it is not the whole matrix of one linear map
                of a block.
        """
        if name not in self.parameters:
            raise ModelError(
                f"{self.name} has no parameter {name!r}; its names are those of the Hugging Face"
                " model"
            )
        for projection in self._projections.values():
            if projection.name == name:
                return projection
        raise ModelError(
            f"{self.name}: {name} is not the matrix of one of the projections {', '.join(PARTS)} of"
            " a block; embeddings, norms, biases, experts and fused matrices cannot be written"
        )

    @cached_property
    def _projections(self) -> dict[tuple[int, str], Projection]:
        found: dict[tuple[int, str], Projection] = {}
        for layer, block in enumerate(self.bridge.blocks):
            for part, owner in PARTS.items():
                module = getattr(
                    getattr(getattr(block, owner, None), part, None), "original_component", None
                )
                # Fused matrices: the bridge runs on copies of their pieces, which have no Hugging
                # Face name.
                name = self._names.get(id(getattr(module, "weight", None)))
                if name is not None:
                    transposed = type(module).__name__ == "Conv1D"
                    found[layer, part] = Projection(
                        name, self.parameters[name], transposed, layer, part
                    )
        return found
