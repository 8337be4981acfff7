"""Options of the datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from mvcore.api import Options
from pydantic import AfterValidator, Field, model_validator

Number = TypeVar("Number", int, float)


def _ascending(limits: tuple[Number, Number]) -> tuple[Number, Number]:
    if limits[0] > limits[1]:
        raise ValueError("give [lowest, highest]")
    return limits


def _odd(limits: tuple[int, int]) -> tuple[int, int]:
    if not all(size % 2 for size in limits):
        raise ValueError("a kernel has an odd number of pixels, as in [3, 7]")
    return limits


Fraction = Annotated[float, Field(ge=0, le=1)]
Fractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)]
Channel = Annotated[int, Field(ge=0, le=255)]
RGB = tuple[Channel, Channel, Channel]


class ColourJitter(Options):
    """Colour changes, each drawn from 1 - x to 1 + x; hue from -x to x turns.

    Args:
        brightness, contrast, saturation: factors about 1.
        hue: part of a turn about the grey axis.
    """

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: float = Field(default=0.0, ge=0, le=0.5)


class ShiftScaleRotate(Options):
    """One affine move with a probability; the defaults are those of the 3D-equivariance authors' training.

    Args:
        shift: by up to this part of the image's side either way, in x and in y.
        scale: by a factor from 1 - x to 1 + x, about the centre.
        rotate: by up to this many degrees either way, about the centre.
        probability: of any move at all.
    """

    shift: Fraction = 0.25
    scale: float = Field(default=0.25, ge=0, lt=1)
    rotate: float = Field(default=45.0, ge=0, le=180)
    probability: Fraction = 0.5


class Blur(Options):
    """A Gaussian blur, as albumentations 1.3.1 draws `GaussianBlur` with its deviation left to the kernel.

    Args:
        kernel: (lowest, highest) side of the kernel in pixels, both odd. Any whole number between them is as likely,
            and an even one stands for the odd one above it; 1 leaves the view as it is.
        probability: of any blur at all.
    """

    kernel: Annotated[
        tuple[Annotated[int, Field(ge=1, le=15)], Annotated[int, Field(ge=1, le=15)]],
        AfterValidator(_ascending),
        AfterValidator(_odd),
    ] = (3, 7)
    probability: Fraction = 0.5


class IsoNoise(Options):
    """Noise of a camera's sensor in hue and lightness, as `ISONoise` of albumentations 1.3.1.

    Args:
        colour_shift: (lowest, highest) deviation of the hue in turns, which `intensity` multiplies.
        intensity: (lowest, highest) strength. Lightness gets Poisson noise, as many grey levels on average as
            `intensity` times the deviation of the view's lightness.
        probability: of any noise at all.
    """

    colour_shift: Fractions = (0.01, 0.05)
    intensity: Fractions = (0.1, 0.5)
    probability: Fraction = 0.5


class Noise(Options):
    """Gaussian noise, each pixel and channel by itself, as `GaussNoise` of albumentations 1.3.1.

    Args:
        variance: (lowest, highest) variance in squared grey levels.
        probability: of any noise at all.
    """

    variance: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1e4)], Annotated[float, Field(ge=0, le=1e4)]], AfterValidator(_ascending)
    ] = (10.0, 50.0)
    probability: Fraction = 0.5


class Clahe(Options):
    """Contrast-limited adaptive histogram equalisation of the lightness, as `CLAHE` of albumentations 1.3.1.

    Args:
        clip_limit: (lowest, highest) height at which a tile's histogram is cut, in multiples of its mean; 256 cuts
            nothing.
        tiles: along each side.
        probability: of any change at all.
    """

    clip_limit: Annotated[
        tuple[Annotated[float, Field(ge=1, le=256)], Annotated[float, Field(ge=1, le=256)]], AfterValidator(_ascending)
    ] = (1.0, 4.0)
    tiles: int = Field(default=8, ge=1, le=32)
    probability: Fraction = 0.5


class BrightnessContrast(Options):
    """Contrast about black, then brightness, as `RandomBrightnessContrast` of albumentations 1.3.1.

    Args:
        brightness: adds up to this part of white either way.
        contrast: multiplies by a factor from 1 - x to 1 + x.
        probability: of any change at all.
    """

    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    probability: Fraction = 0.5


class Augment(Options):
    """One random transform of each view; exactly one of the keys.

    Args:
        random_resized_crop: (lowest, highest) part of the stored image's area that is cut out, with an aspect ratio
            from 3/4 to 4/3; it takes the place of fitting the whole image, wherever it stands in the list.
        rotate: by up to this many degrees either way, about the centre.
        translate: by up to this part of the image's side either way, in x and in y.
        scale: by a factor from (lowest, highest), about the centre.
        shift_scale_rotate: all three at once, with a probability; `background: [0, 0, 0]` makes what comes in from
            outside black, as the authors' code does.
        flip: mirrored left to right with this probability; the view then has no valid camera.
        colour: a colour jitter.
        blur, iso_noise, noise, clahe, brightness_contrast: as their classes say, each with a probability; like `colour`
            they change pixels where they are, after all geometric transforms, in the order of the list.
    """

    random_resized_crop: tuple[float, float] | None = None
    rotate: float | None = Field(default=None, ge=0, le=180)
    translate: Fraction | None = None
    scale: tuple[float, float] | None = None
    shift_scale_rotate: ShiftScaleRotate | None = None
    flip: Fraction | None = None
    colour: ColourJitter | None = None
    blur: Blur | None = None
    iso_noise: IsoNoise | None = None
    noise: Noise | None = None
    clahe: Clahe | None = None
    brightness_contrast: BrightnessContrast | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Augment:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one transform in each entry of the list, as in [{{rotate: 30}}]; here are {given}")
        for name, highest in (("random_resized_crop", 1.0), ("scale", 10.0)):
            pair = getattr(self, name)
            if pair is not None and not 0 < pair[0] <= pair[1] <= highest:
                raise ValueError(f"{name} must be [lowest, highest] above 0 and up to {highest:g}, not {list(pair)}")
        return self

    @property
    def name(self) -> str:
        """The one key that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def value(self) -> Any:
        """Its value."""
        return getattr(self, self.name)


class ViewFilter(Options):
    """Which viewpoints a source gives, by the stored cameras; see `mvcore_data.viewpoints`.

    Args:
        azimuth: ranges [lowest, highest] in degrees, any of which will do, round the circle: [170, -170] is 20 wide.
        elevation: ranges [lowest, highest] in degrees.
    """

    azimuth: tuple[tuple[float, float], ...] | None = None
    elevation: tuple[tuple[float, float], ...] | None = None

    @model_validator(mode="after")
    def _something(self) -> ViewFilter:
        if self.azimuth is None and self.elevation is None:
            raise ValueError("name azimuth or elevation ranges, as in {azimuth: [[-20, 20]]}")
        for low, high in self.elevation or ():
            if not -90 <= low <= high <= 90:
                raise ValueError(f"an elevation range is [lowest, highest] within -90 and 90, not {[low, high]}")
        return self


class ImageOptions(Options):
    """How any dataset here makes its images.

    Args:
        path: where the data is; `package:NAME/FILE` names a file inside an installed package.
        fit: how an image that is not square becomes so: its central square (`crop`), or all of it (`pad`).
        background: RGB that stands behind the object, where transparency or a mask tells it from its background, and
            that fills what comes in from outside the image; by default augmentation repeats the image's border there
            and padding is black.
        augment: random transforms for training, geometric ones in the given order and then those of pixels in theirs.
        limit_objects: only the first so many objects.
    """

    path: str
    fit: Literal["crop", "pad"] = "crop"
    background: RGB | None = None
    augment: tuple[Augment, ...] = ()
    limit_objects: int | None = Field(default=None, ge=1)


class ViewsOptions(ImageOptions):
    """Options of `data.views`.

    Args:
        path: a store (a shard or a folder of shards), or `demo` for the embedded demonstration store; or what `mvcore
            data pack` reads, as a folder of images, which is packed once into a cache.
        format, format_options: of a path that is no store; by default the format is recognised.
        image_size: side of the square images; default: the shorter side of the store's first view.
        split: only the objects of this split of the store.
        licences: only objects of these licences, as `[CC-BY-4.0, CC0-1.0]`; see `mvcore_data.licences.allowed`.
        views: only these viewpoints.
        cache: `memory` keeps every view's image, decoded and fitted, in memory that forked workers share, and stored
            vectors too.
        depth: load depth, where a view has it; `only` leaves out views, and with them objects, that have none.
        masks: load masks; every view must have one.
        restore_background: after `augment`, `background` once more where a view's mask, or without `masks` its depth,
            shows nothing: noise and blur then end at the object.
        tracks: load the points of space that a view shows, where it has them; those that leave the image are dropped.
        captions: `all`; one drawn at `random` for each object and each view (evaluation takes the first); or `none`.
        captions_from: captions of this name that `mvcore data caption` wrote beside the store, in the place of its own.
        embeddings: stored vectors to give with the views drawn and with their captions: tags of `mvcore data embed`, or
            a mapping from names in this run to tags.
        images: false reads no pixels, where stored vectors take their place.
        cameras: false leaves out the cameras that the store has, where nothing reads them.
    """

    path: str = Field(examples=["demo"])
    format: str | None = None
    format_options: dict[str, Any] = Field(default={})
    image_size: int | None = Field(default=None, ge=8, le=4096)
    split: str | None = None
    licences: tuple[str, ...] | None = None
    views: ViewFilter | None = None
    cache: Literal["none", "memory"] = "none"
    depth: bool | Literal["only"] = False
    masks: bool = False
    restore_background: bool = False
    tracks: bool = False
    captions: Literal["all", "random", "none"] = "all"
    captions_from: str | None = None
    embeddings: tuple[str, ...] | dict[str, str] = ()
    images: bool = True
    cameras: bool = True

    @property
    def tags(self) -> dict[str, str]:
        """Tags of stored vectors by their name in the run."""
        return self.embeddings if isinstance(self.embeddings, dict) else {tag: tag for tag in self.embeddings}

    @model_validator(mode="after")
    def _something_to_give(self) -> ViewsOptions:
        if bad := next((name for name in self.tags if not name or "/" in name), None):
            raise ValueError(f"embeddings: {bad!r} cannot be a name; leave out '/'")
        if self.captions_from is not None and self.tags:
            raise ValueError("embeddings are of the store's own captions; leave out captions_from or embeddings")
        if self.restore_background and (self.background is None or not (self.masks or self.depth)):
            raise ValueError("restore_background needs a background, as [0, 0, 0], and masks: true or depth: true")
        if not self.images:
            for name in ("augment", "masks", "depth", "tracks"):
                if getattr(self, name):
                    raise ValueError(f"{name} goes with images; set images to true or leave {name} out")
            if self.cache != "none" and not self.tags:
                raise ValueError("cache keeps images and vectors; set images to true, name embeddings, or cache: none")
        return self


class ImageTextOptions(ImageOptions):
    """Options of `data.image_text`.

    Args:
        path: a JSON list of `{"path", "caption"}` and, optionally, `"obj_id"` and `"img_id"`; image paths are relative
            to the file.
        image_size: side of the square images.
    """

    image_size: int = Field(default=224, ge=8, le=4096)
