"""The categories of the procedural objects."""

CATEGORIES = (
    "airplane", "bicycle", "boot", "bottle", "camera", "car", "chair", "clock", "dog", "fish",
    "guitar", "hammer", "house", "key", "lamp", "mug", "sailboat", "teapot", "tree", "umbrella",
)  # fmt: skip
