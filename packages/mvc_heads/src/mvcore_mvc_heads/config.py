"""Options of the plugin's parts."""

from __future__ import annotations

from typing import Literal

from mvcore.api import Options
from pydantic import Field, model_validator


class MLPOptions(Options):
    """`mvc_heads.mlp`: linear layers with ReLUs between them, in the place of `view`."""

    hidden: int | None = Field(default=None, ge=1, description="width between; null = that of the views")
    hidden_layers: int = Field(default=2, ge=1, description="layers between; the linear ones are one more")


class AutoencoderOptions(Options):
    """`mvc_heads.autoencoder`: an encoder and decoder for what views share, and a pair for what they do not."""

    bottleneck: int = Field(default=128, ge=1, description="width of the encodings")
    variant: Literal["linear", "reference"] = Field(
        default="linear", description="reference: the authors' widths and a ReLU at each part's end; powers of two only"
    )
    branch_dropout: float = Field(
        default=0.0, ge=0, le=1, description="probability that a training pass leaves out the viewpoint's branch"
    )
    drop_in_eval: bool = Field(default=False, description="leaves it out in eval mode too, as the authors' code does")
    unit_input: bool = Field(
        default=False, description="rebuild unit vectors, so that the distance weighs as much as the cosines beside it"
    )


class ObjectOptions(Options):
    """`mvc_heads.object`: views of an object, and its text, drawn together."""

    text_weight: float | None = Field(
        default=None, ge=0, le=1, description="share of the text-image pairs; null = by their number; 0 = without texts"
    )

    def needs(self) -> frozenset[str]:
        """Texts, unless they weigh nothing."""
        return frozenset({"view"} if self.text_weight == 0 else {"view", "text", "captions"})


class ContrastiveOptions(ObjectOptions):
    """`mvc_heads.contrastive`: an object drawn together, objects driven apart, linearly in the cosine."""

    similarity_weight: float = Field(default=0.5, ge=0, le=1, description="w in (1 - w) D - w S")
    normalise: Literal["mean", "reference"] = Field(
        default="mean", description="reference: the authors' divisor, which makes D (V + 1) / V times the mean"
    )
    cross_pairs: Literal["all", "figure"] = Field(
        default="all", description="figure: only the pairs across objects that the authors' figure draws"
    )

    @model_validator(mode="after")
    def _one_weighting(self) -> ContrastiveOptions:
        if self.text_weight is not None and (self.normalise, self.cross_pairs) != ("mean", "all"):
            raise ValueError("text_weight sets the weight of pairs; it goes with normalise: mean and cross_pairs: all")
        return self


class AutoencoderLossOptions(Options):
    """`mvc_heads.autoencoder`: rebuild the views, and tell objects apart by what their views share."""

    similarity_weight: float = Field(default=0.5, ge=0, le=1, description="w in (1 - w) D - w S")
    reconstruction_weight: float = Field(default=0.5, ge=0, le=1, description="a in a A + (1 - a) ((1 - w) D - w S)")
    normalise: Literal["mean", "reference"] = Field(
        default="mean", description="reference: the authors' divisor, which makes D V / (V - 1) times the mean"
    )


class InfoNCEOptions(Options):
    """`mvc_heads.infonce`: contrast with a softmax over the batch."""

    temperature: float = Field(default=0.07, gt=0, description="cosines are divided by it")
    texts: bool = Field(default=True, description="captions take part beside the views")

    def needs(self) -> frozenset[str]:
        """Texts, where they take part."""
        return frozenset({"view", "text", "captions"} if self.texts else {"view"})


class ReconstructionOptions(Options):
    """`mvc_heads.reconstruction`: how much of a view the autoencoder gives back."""

    sources: tuple[str, ...] | None = Field(default=None, description="which sources are measured; null = all")
