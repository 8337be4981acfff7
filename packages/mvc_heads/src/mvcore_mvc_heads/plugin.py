"""What the multi-view heads offer to mvcore."""

from __future__ import annotations

from mvcore.api import EncoderSpec, EvaluatorSpec, LossSpec, RecipeSpec, hookimpl

MVCORE_API = 1

_PAPER = "Laugaland, Korth, Investigating Multi-View Consistency of CLIP Features, project report, KAIST 2024"
_CONTRAST = "Khosla et al., Supervised Contrastive Learning, NeurIPS 2020"


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="mlp",
            summary="A small perceptron after the encoder, in the place of each view's vector",
            kind="adapter",
            factory="mvcore_mvc_heads.adapters:MLPAdapter",
            config="mvcore_mvc_heads.config:MLPOptions",
            needs={"view"},
            provides={"view"},
            citation=_PAPER,
        ),
        EncoderSpec(
            name="autoencoder",
            summary="Splits each view's vector into what views share and what they do not, and keeps the first",
            kind="adapter",
            factory="mvcore_mvc_heads.adapters:AutoencoderAdapter",
            config="mvcore_mvc_heads.config:AutoencoderOptions",
            needs={"view"},
            provides={"view", "mvc_heads.original", "mvc_heads.decoded", "mvc_heads.invariant"},
            axes={"mvc_heads.original": "view", "mvc_heads.decoded": "view", "mvc_heads.invariant": "view"},
            citation=_PAPER,
        ),
        EncoderSpec(
            name="identity",
            summary="No head at all, for a baseline run beside those with one",
            kind="adapter",
            factory="mvcore_mvc_heads.adapters:IdentityAdapter",
            needs={"view"},
            provides={"view"},
            citation=_PAPER,
        ),
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="object",
            summary="Draws the views of an object and its text together",
            factory="mvcore_mvc_heads.terms:ObjectSimilarity",
            config="mvcore_mvc_heads.config:ObjectOptions",
            needs={"view", "text", "captions"},
            citation=_PAPER,
        ),
        LossSpec(
            name="contrastive",
            summary="Draws an object together and objects apart, linearly in the cosine",
            factory="mvcore_mvc_heads.terms:Contrastive",
            config="mvcore_mvc_heads.config:ContrastiveOptions",
            needs={"view", "text", "captions"},
            citation=_PAPER,
        ),
        LossSpec(
            name="autoencoder",
            summary="Rebuilds views, and draws an object's invariant encodings together and objects' apart",
            factory="mvcore_mvc_heads.terms:Autoencoding",
            config="mvcore_mvc_heads.config:AutoencoderLossOptions",
            needs={"mvc_heads.original", "mvc_heads.decoded", "mvc_heads.invariant"},
            citation=_PAPER,
        ),
        LossSpec(
            name="infonce",
            summary="Contrast of views and texts of an object with all others by a softmax, which keeps objects apart",
            factory="mvcore_mvc_heads.terms:InfoNCE",
            config="mvcore_mvc_heads.config:InfoNCEOptions",
            needs={"view", "text", "captions"},
            citation=_CONTRAST,
        ),
    ]


@hookimpl
def mvcore_register_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="reconstruction",
            summary="How much of each view's vector the autoencoder gives back",
            factory="mvcore_mvc_heads.report:ReconstructionReport",
            config="mvcore_mvc_heads.config:ReconstructionOptions",
            citation=_PAPER,
        )
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    described = {
        "baseline": "no head at all",
        "object": "the object head",
        "contrastive": "the contrastive head",
        "autoencoder": "the autoencoder",
    }
    kinds = {"paper": "as the authors describe it", "released": "as the authors' code does it"}
    recipes = [
        RecipeSpec(
            name=f"{method}-{kind}",
            summary=f"{what[0].upper()}{what[1:]} on stored vectors, {how}",
            path=f"mvcore_mvc_heads:recipes/{method}-{kind}.yaml",
            default=(method, kind) == ("autoencoder", "paper"),
            citation=_PAPER,
        )
        for method, what in described.items()
        for kind, how in kinds.items()
    ]
    demo = RecipeSpec(
        name="demo",
        summary="A head on the frozen demo model, on the embedded demo set",
        path="mvcore_mvc_heads:recipes/demo.yaml",
    )
    return [*recipes, demo]
