"""A transformers vision-language model that writes captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mvcore.api import ConfigError, DeviceError, Options, WeightsError
from numpy.typing import NDArray
from pydantic import Field

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Generation(Options):
    """How texts are generated: the settings of Omniview-Tuning, whose captioner is InstructBLIP.

    Args:
        beams: of the beam search.
        max_length: tokens of a caption.
        length_penalty: below 0 favours short captions.
    """

    beams: int = Field(default=5, ge=1, le=64)
    max_length: int = Field(default=32, ge=1, le=1024)
    length_penalty: float = -1.0


class Captioner:
    """A model such as BLIP-2 or InstructBLIP, from safetensors files alone and without code of the model's own.

    Args:
        model: a hub name or a local folder.
        device: `cpu` or `cuda`.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        ConfigError: transformers is not installed, or the model is of another kind.
        WeightsError: it is not there, or has no safetensors weights.
        DeviceError: no such device.
    """

    def __init__(self, model: str, *, device: str = "cpu", dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r}: give {', '.join(DTYPES)}")
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError:
            raise ConfigError("captions need transformers: pip install 'mvcore-data[caption]'") from None
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                model, use_safetensors=True, trust_remote_code=False, dtype=DTYPES[dtype]
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise WeightsError(f"{model}: no vision-language model can be loaded from it ({said.strip()})") from None
        if getattr(self._processor, "chat_template", None):
            raise ConfigError(f"{model}: a chat model; give one that takes a plain prompt, as BLIP-2 or InstructBLIP")
        try:
            self._model = loaded.to(device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(f"device {device!r}: {str(error).splitlines()[0]}") from None
        text = getattr(loaded.config, "text_config", loaded.config)
        self._encodes_prompt = bool(getattr(text, "is_encoder_decoder", False))
        self._device, self._dtype = torch.device(device), DTYPES[dtype]

    def describe(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        generation: Generation,
        *,
        sample_seed: int | None = None,
    ) -> list[str]:
        """A caption of each image.

        Args:
            images: (H, W, 3) RGB.
            prompts: as many.
            generation: how.
            sample_seed: draw the words at random with this seed in the place of a beam search.
        """
        from PIL import Image

        pictures = [Image.fromarray(pixels) for pixels in images]
        inputs = self._processor(images=pictures, text=list(prompts), return_tensors="pt", padding=True)
        inputs = inputs.to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        # A decoder behind an encoder counts its start token, as the paper's captioner does.
        how: dict[str, Any] = {"max_length" if self._encodes_prompt else "max_new_tokens": generation.max_length}
        if sample_seed is None:
            # A length penalty means something to a beam search alone.
            penalty = {"length_penalty": generation.length_penalty} if generation.beams > 1 else {}
            how |= {"num_beams": generation.beams, "do_sample": False, **penalty}
        else:
            how |= {"num_beams": 1, "do_sample": True}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            if sample_seed is not None:
                torch.manual_seed(sample_seed)
            tokens = self._model.generate(**inputs, **how)
        return [" ".join(text.split()) for text in self._answers(tokens, inputs["input_ids"])]

    def _answers(self, tokens: torch.Tensor, prompt: torch.Tensor) -> list[str]:
        """The generated texts, without the prompt that decoder-only models repeat."""
        n = prompt.shape[1]
        if tokens.shape[1] >= n and torch.equal(tokens[:, :n], prompt):
            tokens = tokens[:, n:]
        return self._processor.batch_decode(tokens, skip_special_tokens=True)
