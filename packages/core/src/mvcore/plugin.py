"""What core itself brings: the open_clip and timm backbones, two losses, measurements, a recipe and the checks."""

from __future__ import annotations

from mvcore.api import (
    CheckSpec,
    EncoderSpec,
    EvaluatorSpec,
    LossSpec,
    RecipeSpec,
    hookimpl,
)

MVCORE_API = 1

_CLIP = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
_SIGLIP = "Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023"


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="open_clip",
            summary="Any open_clip model, unmodified: by name, hf-hub:, local-dir: or a JSON config file",
            factory="mvcore.encoders.open_clip:OpenClip",
            config="mvcore.encoders.options:OpenClipOptions",
            provides={"view", "text", "dense", "logit_scale", "logit_bias"},
        ),
        EncoderSpec(
            name="timm",
            summary="Any timm model, unmodified: views and dense features, by name, hf-hub: or local-dir:",
            factory="mvcore.encoders.timm:Timm",
            config="mvcore.encoders.options:TimmOptions",
            provides={"view", "dense"},
        ),
        EncoderSpec(
            name="embeddings",
            summary="Vectors that were stored beside the data, in the place of images and an encoder",
            factory="mvcore.encoders.embeddings:StoredFeatures",
            config="mvcore.encoders.options:StoredFeaturesOptions",
            needs={"embeddings"},
            provides={"view", "text"},
        ),
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="itc",
            summary="Image-text contrast with softmax; a view's target is spread over its captions",
            factory="mvcore.losses.itc:ImageTextContrastive",
            config="mvcore.losses.options:ItcOptions",
            needs={"view", "text", "logit_scale", "captions"},
            citation=_CLIP,
        ),
        LossSpec(
            name="siglip",
            summary="Image-text contrast with a sigmoid for every pair",
            factory="mvcore.losses.siglip:SigmoidContrastive",
            config="mvcore.losses.options:SiglipOptions",
            needs={"view", "text", "logit_scale", "logit_bias", "captions"},
            citation=_SIGLIP,
        ),
    ]


@hookimpl
def mvcore_register_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="zero_shot",
            summary="Zero-shot classification of views by their category's prompts",
            factory="mvcore.evaluation.zero_shot:ZeroShot",
            config="mvcore.evaluation.options:ZeroShotOptions",
            needs={"view", "text"},
        ),
        EvaluatorSpec(
            name="consistency",
            summary="Cosine similarity within objects, between objects, and of texts to views",
            factory="mvcore.evaluation.view_consistency:Consistency",
            config="mvcore.evaluation.options:ConsistencyOptions",
            needs={"view"},
        ),
        EvaluatorSpec(
            name="ledger",
            summary="Consistency gained against meaning lost: similarities, own texts, zero-shot, rank, viewpoints",
            factory="mvcore.evaluation.ledger:Ledger",
            config="mvcore.evaluation.options:LedgerOptions",
            needs={"view"},
        ),
        EvaluatorSpec(
            name="retrieval",
            summary="Recall of an object's other views, from its views and from its texts",
            factory="mvcore.evaluation.retrieval:Retrieval",
            config="mvcore.evaluation.options:RetrievalOptions",
            needs={"view"},
        ),
        EvaluatorSpec(
            name="object_retrieval",
            summary="Recall, NDCG and MRR of objects among all objects, from their texts and from views held out",
            factory="mvcore.evaluation.object_retrieval:ObjectRetrieval",
            config="mvcore.evaluation.options:ObjectRetrievalOptions",
            needs={"view"},
        ),
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="pretrain",
            summary="Pre-trains a small CLIP from random weights on captioned views",
            path="mvcore:recipes/pretrain.yaml",
        )
    ]


@hookimpl
def mvcore_register_checks() -> list[CheckSpec]:
    checks = {
        "versions": "Python and the libraries underneath",
        "device": "CUDA and bfloat16",
        "attention": "The backend of packed attention",
        "disk": "Free space in the working folder",
        "plugins": "Plugins that could not be loaded",
    }
    return [
        CheckSpec(name=name, summary=summary, factory=f"mvcore.doctor:check_{name}") for name, summary in checks.items()
    ]
