"""Captioning a store with a vision-language model: a prompt for each view, a check of the answer, a line in a file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from mvcore.api import ConfigError, DataError
from numpy.typing import NDArray

from mvcore_data.caption_files import CaptionWriter, ViewCaptions, captions_path, drop_torn_line
from mvcore_data.caption_prompts import GUIDED, UNGUIDED
from mvcore_data.captioner import Generation
from mvcore_data.lock import StoreLock
from mvcore_data.store import ViewStore

Policy = Literal["retry", "drop", "keep"]


class Describes(Protocol):
    """What writes captions; `mvcore_data.captioner.Captioner` is one."""

    def describe(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        generation: Generation,
        *,
        sample_seed: int | None = None,
    ) -> list[str]:
        """A caption of each image."""
        ...


@dataclass
class CaptionReport:
    """What was done.

    Args:
        written: captions written now.
        before: views that had a line already.
        retried: views that were asked again, because the category was not in the caption.
        without_category: captions that lack it, kept or left out as the policy says.
        left_out: views without a caption, for that reason or because the model said nothing.
        unguided: views of objects that have no category.
    """

    written: int = 0
    before: int = 0
    retried: int = 0
    without_category: int = 0
    left_out: int = 0
    unguided: int = 0


def caption_store(
    store: ViewStore,
    captioner: Describes,
    name: str,
    *,
    model: str,
    prompt: str = GUIDED,
    plain_prompt: str = UNGUIDED,
    generation: Generation | None = None,
    require_category: Policy = "retry",
    attempts: int = 2,
    batch: int = 8,
    replace: bool = False,
    on_views: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionReport:
    """Writes a caption of each view to `STORE/captions/<name>.jsonl`, or goes on with what is there.

    Args:
        store: the opened store.
        captioner: writes the captions.
        name: of the captions.
        model: the model's name, recorded with the captions.
        prompt: for a view of an object with a category, which stands for `{category}`.
        plain_prompt: for a view of one without.
        generation: how texts are generated.
        require_category: where the category is not in the caption: `retry` draws again at random, up to `attempts`
            times, and then leaves the view out; `drop` leaves it out; `keep` keeps it.
        attempts: of `retry`.
        batch: views captioned at a time.
        replace: begin anew where captions of this name were made otherwise.
        on_views: called with the views done and in all.

    Raises:
        ConfigError: the prompt has no `{category}`.
        DataError: captions of this name were made otherwise, another process writes them, or a view is damaged.
    """
    if "{category}" not in prompt:
        raise ConfigError(f"prompt {prompt!r}: it must hold {{category}}, which stands for the object's category")
    generation = generation or Generation()
    key = {"model": model, "prompt": prompt, "plain_prompt": plain_prompt, "require_category": require_category}
    key |= {"attempts": attempts, **generation.model_dump()}
    path = captions_path(store.path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = StoreLock(path.with_suffix(".lock"))
    try:
        todo, anew = _left_to_do(store, path, key, replace)
        report = CaptionReport(before=store.n_views - len(todo))
        on_views(report.before, store.n_views)
        job = _Job(store, captioner, prompt, plain_prompt, generation, require_category, attempts, report)
        if len(todo) or anew:
            with CaptionWriter(path, key, anew=anew) as writer:
                for k in range(0, len(todo), batch):
                    writer.add(job.lines(todo[k : k + batch].tolist()))
                    on_views(report.before + min(k + batch, len(todo)), store.n_views)
                writer.finish()
        return report
    finally:
        lock.release()


def keeps_category(caption: str, category: str) -> bool:
    """Whether a caption names a category: its words one after another, in any case, the last one also in the plural."""
    words, wanted = (re.findall(r"[^\W_]+", text.lower()) for text in (caption, category))
    if not wanted:
        return True
    *head, last = wanted
    forms = {last, f"{last}s", f"{last}es", f"{last[:-1]}ies" if last.endswith("y") else last}
    n = len(head)
    return any(words[k : k + n] == head and words[k + n] in forms for k in range(len(words) - n))


@dataclass
class _Job:
    store: ViewStore
    captioner: Describes
    prompt: str
    plain_prompt: str
    generation: Generation
    policy: Policy
    attempts: int
    report: CaptionReport

    def lines(self, views: list[int]) -> list[dict[str, Any]]:
        """The lines of some views."""
        owners = [self.store.object_of(v) for v in views]
        categories = [self.store.category(i) for i in owners]
        images = [self.store.image(v) for v in views]
        prompts = [
            self.plain_prompt if category is None else self.prompt.replace("{category}", category.replace("_", " "))
            for category in categories
        ]
        captions: list[str | None] = [*self.captioner.describe(images, prompts, self.generation)]
        self.report.unguided += sum(category is None for category in categories)
        for k, (view, category) in enumerate(zip(views, categories, strict=True)):
            captions[k] = self._checked(captions[k] or "", category, view, images[k], prompts[k]) or None
        self.report.written += sum(caption is not None for caption in captions)
        self.report.left_out += sum(caption is None for caption in captions)
        ids = self.store.object_ids
        return [
            {"object": ids[i], "view": view - self.store.views_of(i).start, "caption": caption}
            for view, i, caption in zip(views, owners, captions, strict=True)
        ]

    def _checked(
        self, caption: str, category: str | None, view: int, image: NDArray[np.uint8], prompt: str
    ) -> str | None:
        if category is None or keeps_category(caption, category):
            return caption
        if self.policy == "retry" and self.attempts:
            self.report.retried += 1
            for attempt in range(self.attempts):
                # The view's own seed: the batch that it stands in changes nothing.
                seed = zlib.crc32(f"{self.store.object_ids[self.store.object_of(view)]}\0{view}\0{attempt}".encode())
                again = self.captioner.describe([image], [prompt], self.generation, sample_seed=seed)[0]
                if keeps_category(again, category):
                    return again
        self.report.without_category += 1
        return caption if self.policy == "keep" else None


def _left_to_do(store: ViewStore, path: Path, key: dict[str, Any], replace: bool) -> tuple[NDArray[np.int64], bool]:
    """Views without a line, and whether to begin a new file."""
    partial = path.with_name(f"{path.name}.tmp")
    if path.exists() and not partial.exists():
        found = ViewCaptions(store, path)
        if not (differs := _difference(found.key, key)):
            if len(found.missing):  # the store has grown
                partial.write_bytes(path.read_bytes())
            return found.missing, False
    elif partial.exists():
        drop_torn_line(partial)
        if not partial.stat().st_size:
            return np.arange(store.n_views), True
        found = ViewCaptions(store, partial)
        if not (differs := _difference(found.key, key)):
            return found.missing, False
    else:
        return np.arange(store.n_views), True
    if not replace:
        raise DataError(
            f"{path}: captions of this name were made otherwise ({differs}); give another --name, or --replace"
        )
    return np.arange(store.n_views), True


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    parts = [f"{name} {found.get(name)!r}, not {value!r}" for name, value in wanted.items() if found.get(name) != value]
    return ", ".join(parts)
