"""A backbone with its adapters: what training steps through, evaluation measures and `mvcore.load` returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvcore.blame import blamed_on
from mvcore.dense_grid import DenseGrid, sample_dense
from mvcore.errors import ConfigError, PluginError
from mvcore.fitting import Fitting, as_pixels, as_points
from mvcore.images import split_images, split_objects
from mvcore.parts import Backbone
from mvcore.specs import BATCH_FIELDS, CORE_AXES, STATE, Axis
from mvcore.types import Features, ViewBatch

AnyImage = NDArray[Any] | Tensor | Image.Image
Images = AnyImage | Sequence[AnyImage]
Objects = AnyImage | Sequence[AnyImage | Sequence[AnyImage]]


@dataclass(frozen=True)
class Link:
    """One adapter in the chain: its name in the run, its module, the features that it reads and gives, its options."""

    name: str
    module: nn.Module
    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    axes: Mapping[str, Axis] = field(default_factory=dict[str, Axis])
    made_of: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def reads(self) -> frozenset[str]:
        """Its needs that are features, not fields of the batch."""
        return features_in(self.needs)


def features_in(needs: Iterable[str]) -> frozenset[str]:
    """Those of the needed keys that are features: neither batch fields nor published state."""
    return frozenset(key for key in needs if key not in BATCH_FIELDS and not key.startswith(STATE))


class Step(Protocol):
    """Anything that reads some features and gives others."""

    @property
    def reads(self) -> frozenset[str]: ...

    @property
    def provides(self) -> frozenset[str]: ...


StepT = TypeVar("StepT", bound=Step)


def walk_back(links: Sequence[StepT], wanted: frozenset[str]) -> tuple[list[StepT], frozenset[str]]:
    """The adapters that are needed for `wanted`, in order, and what is then asked of the backbone.

    An adapter that gives nothing anybody wants is skipped; one that replaces a key also reads the one before it.
    """
    open_keys, active = set(wanted), list[StepT]()
    for link in reversed(links):
        if link.provides & open_keys:
            open_keys -= link.provides
            open_keys |= link.reads
            active.append(link)
    return active[::-1], frozenset(open_keys)


class Pipeline(nn.Module):
    """A backbone and an ordered chain of adapters, already attached."""

    def __init__(self, backbone: Backbone, links: Sequence[Link]) -> None:
        super().__init__()
        self.backbone = backbone
        self.links = tuple(links)
        self.adapters = nn.ModuleList(link.module for link in links)
        self.axes: dict[str, Axis] = {key: axis for link in links for key, axis in link.axes.items()}
        self._chains: dict[frozenset[str], tuple[list[Link], frozenset[str]]] = {}

    @property
    def device(self) -> torch.device:
        """Where it runs; a backbone without weights has a buffer."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def provides(self) -> frozenset[str]:
        return self.backbone.provides.union(*(link.provides for link in self.links))

    def forward(self, batch: ViewBatch, keys: frozenset[str]) -> Features:
        """The features `keys` of a batch on the model's device, each computed once.

        Raises:
            PluginError: a feature that neither backbone nor adapters give, or an adapter that breaks its word.
        """
        if keys not in self._chains:
            self._chains[keys] = walk_back(self.links, keys)
        active, asked = self._chains[keys]
        unknown = asked - self.backbone.provides
        if unknown:
            raise PluginError(f"no part of this model gives the feature {', '.join(sorted(map(repr, unknown)))}")
        with parametrize.cached():
            owner = f"encoder {self.backbone.origin.get('id', type(self.backbone).__name__)}"
            with blamed_on(owner):
                values = self.backbone.encode(batch, asked)
            if missing := asked - values.keys():
                raise PluginError(f"{owner} gave {sorted(values)} where {sorted(missing)} was asked for")
            self._check_rows(values, batch, owner)
            for link in active:
                features = Features(values, self._owner(link), self.axes).restricted(link.needs, self._owner(link))
                with blamed_on(self._owner(link)):
                    given = link.module(features, batch.restricted(link.needs, self._owner(link)))
                if given.keys() != link.provides:
                    raise PluginError(
                        f"{self._owner(link)} gave {sorted(given)} where its spec provides {sorted(link.provides)}"
                    )
                self._check_rows(given, batch, self._owner(link))
                values = {**values, **given}
        return Features({key: values[key] for key in keys}, axes=self.axes)

    def _check_rows(self, given: Mapping[str, Tensor], batch: ViewBatch, owner: str) -> None:
        """Refuses a feature whose rows are not those of its axis; shapes are known without waiting for the device."""
        for key, value in given.items():
            rows = batch.sizes.get(self.axes.get(key, CORE_AXES.get(key, "none")))
            if rows is not None and (value.ndim == 0 or value.shape[0] != rows):
                raise PluginError(
                    f"{owner} gave {key!r} as {tuple(value.shape)} for a batch of {rows} rows; 'mvcore plugins check' "
                    "tells more"
                )

    @staticmethod
    def _owner(link: Link) -> str:
        return f"adapter {link.name}"

    def owned_parameters(self) -> dict[int, str]:
        """The adapters' parameters, by identity, with the name of the adapter that owns each."""
        return {id(p): link.name for link in self.links for p in link.module.parameters()}

    def backbone_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The backbone's own parameters under the library's names; an adapter's low-rank factors are not among them."""
        from mvcore.parts import library_key

        owned = self.owned_parameters()
        for name, parameter in self.backbone.model.named_parameters():
            if id(parameter) not in owned:
                yield library_key(name), parameter

    def backbone_state(self) -> dict[str, Tensor]:
        """What training changes in the backbone: its trained parameters and, beside them, running statistics."""
        state: dict[str, Tensor] = {name: p for name, p in self.backbone_parameters() if p.requires_grad}
        for name, module in self.backbone.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(
                p.requires_grad for p in module.parameters()
            ):
                state |= {f"{name}.{key}": value for key, value in module.named_buffers(recurse=False)}
        return state


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; every submodule's own mode is restored afterwards."""
    modes = {id(child): child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child in module.modules():
            child.training = modes.get(id(child), child.training)


class Model:
    """A trained or plain model for use: images, texts and views in, vectors out.

    Runs in eval mode without gradient on the model's device, in float32, deterministically; the global random state is
    not touched. Vectors are not normalised.
    """

    def __init__(self, pipeline: Pipeline, name: str = "model", views_per_batch: int = 256) -> None:
        self.pipeline = pipeline
        self.name = name
        self.views_per_batch = views_per_batch

    @property
    def backbone(self) -> Backbone:
        return self.pipeline.backbone

    @property
    def adapters(self) -> dict[str, nn.Module]:
        return {link.name: link.module for link in self.pipeline.links}

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def to(self, device: torch.device | str) -> Model:
        """Moves the model in place."""
        self.pipeline.to(device)
        return self

    def from_images(self) -> Model:
        """The model that takes images: itself, unless it is one of stored vectors."""
        return self

    def features(self, batch: ViewBatch, keys: frozenset[str]) -> Features:
        """Features of a batch, which may be on any device."""
        with evaluating(self.pipeline):
            return self.pipeline(batch.to(self.device, non_blocking=True), keys)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(T, D) vectors of T texts; one text may stand alone."""
        if isinstance(texts, str):
            texts = [texts]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError("a text must be a str, and texts a list of them")
        # A text needs no view; one object without captions' images keeps the batch's layout valid.
        batch = ViewBatch.make(
            [1],
            captions=tuple(texts),
            caption_object=torch.zeros(len(texts), dtype=torch.int64),
            caption_view=torch.full((len(texts),), -1),
        )
        return self.features(batch, frozenset({"text"})).text

    def encode_images(self, images: Images) -> Tensor:
        """(N, D) vectors of N images.

        Args:
            images: a list of images, an (N, H, W, C) stack, or one image; each of any size and as `to_rgb` in
                `mvcore.images` takes it: (H, W, 3) uint8 RGB, (H, W) grey, (H, W, 4) RGBA, which is laid over white, or
                floats in 0 to 1. An image's shorter side is resized to the model's size (bicubic, antialiased), and
                the rest cut off about the centre.

        Raises:
            ConfigError: no image, or something that is none.
        """
        return self._in_chunks(self.prepare(split_images(images)), "view")

    def encode_views(self, objects: Objects) -> Tensor:
        """(B, D) vectors of B objects.

        An object's vector is the `object` feature where the model has one, else the mean of its unit view vectors.

        Args:
            objects: a list with the views of each object, as many as it has: a list of images or a stack of them; or
                one stack (F, H, W, C) or one image, which is one object. Images are as `encode_images` takes them, so
                those of one object may differ in size.

        Raises:
            ConfigError: no object, an object without a view, or something that is no image.
        """
        views = split_objects(objects)
        vectors: list[Tensor] = []
        for group in _groups([len(images) for images in views], self.views_per_batch):
            images = torch.cat([self.prepare(views[i]) for i in group])
            vectors.append(self.object_vectors(ViewBatch.make([len(views[i]) for i in group], images=images)))
        return torch.cat(vectors)

    def object_vectors(self, batch: ViewBatch) -> Tensor:
        """(B, D) vectors of a batch's objects, by the rule of `encode_views`."""
        if "object" in self.pipeline.provides:
            return self.features(batch, frozenset({"object"})).object
        if batch.n_views > self.views_per_batch and batch.images is not None:
            views = self._in_chunks(batch.images, "view")
        else:
            views = self.features(batch, frozenset({"view"})).view
        views = nn.functional.normalize(views, dim=-1)
        owner, counts = batch.object_of_view.to(views.device), batch.view_counts.to(views.device)
        sums = torch.zeros(len(counts), views.shape[1], device=views.device).index_add_(0, owner, views)
        return sums / counts[:, None]

    def dense(self, images: Images, *, per_pixel: bool = False) -> Tensor:
        """(N, C, h, w) feature maps of N images; `dense_grid` says where their cells lie.

        A model that takes any size sees each image whole; another one sees what `encode_images` shows it, its middle
        square.

        Args:
            images: as `encode_images` takes them.
            per_pixel: one vector for each pixel of the images, (N, C, H, W): what `keypoints` gives at (x + 0.5,
                y + 0.5) for the pixel in column x and row y.

        Raises:
            ConfigError: no image, maps of several sizes, or pixels that the model does not see.
        """
        pixels = [as_pixels(image) for image in split_images(images)]
        if not pixels:
            raise ConfigError("no image given")
        if per_pixel:
            sizes = {tuple(image.shape[1:]) for image in pixels}
            if len(sizes) != 1:
                raise ConfigError(f"a map of pixels needs images of one size, not of {sorted(sizes)}")
            height, width = sizes.pop()
            centres = DenseGrid.tiling(height, width, width, height).centres(dtype=torch.float64)
            found = self._at_points(pixels, centres.flatten(0, 1).expand(len(pixels), -1, -1))
            return found.transpose(1, 2).unflatten(2, (height, width))
        maps = self._maps(pixels)
        sizes = {tuple(dense.shape[1:]) for dense in maps}
        if len(sizes) != 1:
            raise ConfigError(f"the maps differ in size {sorted(sizes)}; give images of one aspect, or each alone")
        return torch.stack(maps)

    def keypoints(self, images: Images, points: Any) -> Tensor:
        """(N, P, C) features at P points of each of N images: the map of `dense`, bilinear between its cells.

        Args:
            images: as `encode_images` takes them, each of any size.
            points: (N, P, 2) or, of one image, (P, 2), of any real type: (x, y) in continuous pixels of the images as
                they are given, the upper left corner at (0, 0) and pixel centres at +0.5. P may be 0.

        Raises:
            ConfigError: no image, points of another shape, not finite, or where the model does not see the image.
        """
        pixels = [as_pixels(image) for image in split_images(images)]
        if not pixels:
            raise ConfigError("no image given")
        return self._at_points(pixels, as_points(points, len(pixels)))

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        """Where the cells of `dense` lie in images of `width` x `height` pixels, as they are given to it.

        Raises:
            ConfigError: the model takes no such images, or the places of its cells are not known.
        """
        fitting = Fitting(width, height, self._cut_to)
        seen = (width, height) if fitting.size is None else (fitting.size, fitting.size)
        return fitting.grid(self.backbone.dense_grid(*seen))

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """(N, 3, S, S) uint8 of images as `encode_images` takes them, as the model sees them.

        The shorter side is resized to the model's size (bicubic, antialiased) and the central square taken.
        """
        size = self.backbone.image_size
        pixels = [as_pixels(image) for image in images]
        prepared = [Fitting(image.shape[2], image.shape[1], size).apply(image) for image in pixels]
        if not prepared:
            raise ConfigError("no image given")
        sizes = {tuple(pixels.shape[1:]) for pixels in prepared}
        if len(sizes) > 1:
            raise ConfigError(f"{self.name} takes images as they are; make these of one size: {sorted(sizes)}")
        return torch.stack(prepared)

    @property
    def _cut_to(self) -> int | None:
        """The side of the square that is cut out of images for maps; None = images are taken whole."""
        return None if self.backbone.any_size else self.backbone.image_size

    def _maps(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """The maps (C, h, w) of images (3, H, W); those of one size go through together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, image in enumerate(pixels):
            groups.setdefault((image.shape[2], image.shape[1]), []).append(row)
        maps: dict[int, Tensor] = {}
        for (width, height), rows in groups.items():
            fitting = Fitting(width, height, self._cut_to)
            found = self._in_chunks(torch.stack([fitting.apply(pixels[row]) for row in rows]), "dense")
            maps |= dict(zip(rows, found, strict=True))
        return [maps[row] for row in range(len(pixels))]

    def _at_points(self, pixels: Sequence[Tensor], points: Tensor) -> Tensor:
        fittings = [Fitting(image.shape[2], image.shape[1], self._cut_to) for image in pixels]
        for row, (fitting, own) in enumerate(zip(fittings, points, strict=True)):
            fitting.check_inside(own, row)
        found: list[Tensor] = []
        for dense, fitting, own in zip(self._maps(pixels), fittings, points, strict=True):
            grid = self.dense_grid(fitting.width, fitting.height)
            if tuple(dense.shape[1:]) != (grid.rows, grid.columns):
                shape = f"{dense.shape[1]} x {dense.shape[2]}"
                raise PluginError(
                    f"{self.name}: an adapter made a map of {shape} cells of {grid.rows} x {grid.columns}"
                )
            found.append(sample_dense(dense[None], own[None].to(dense.device), grid)[0])
        return torch.stack(found)

    def _in_chunks(self, images: Tensor, key: str) -> Tensor:
        chunks = [ViewBatch.make([1] * len(c), images=c) for c in images.split(self.views_per_batch)]
        return torch.cat([self.features(chunk, frozenset({key}))[key] for chunk in chunks])


def _groups(counts: Sequence[int], views_per_batch: int) -> list[list[int]]:
    """Consecutive objects of about `views_per_batch` views together."""
    groups: list[list[int]] = []
    views = views_per_batch
    for i, count in enumerate(counts):
        if not groups or views + count > views_per_batch:
            groups.append([])
            views = 0
        groups[-1].append(i)
        views += count
    return groups
