"""The `mvcore.views` schema, version 1: names, types and limits of what a shard holds.

A shard is one immutable HDF5 file. N is its number of views, O of objects, T of captions:

    attributes   schema, version, complete, n_objects, n_views, creator, content_sha256
    /views       blob u1 (B,), offset i8 (N+1,), crc32 u4 (N,), size u2 (N,2) as (H, W), codec u1 (N,), object i4 (N,)
    /objects     id utf-8 (O,), view_offset i8 (O+1,), category, licence, source, creator i4 (O,): rows of /meta, or -1
    /meta        category_names, licence_names, source_names, creator_names utf-8
    /captions    blob u1, offset i8 (T+1,), target i4 (T,): a view's index, or -1 - object
    /cameras     K f4 (N,3,3), w2c f4 (N,4,4), valid bool (N,)
    /depth       blob u1, offset i8 (N+1,), crc32 u4 (N,), scale f4 (N,): 16-bit PNG, depth = value * scale, 0 = none
    /masks       blob u1, offset i8 (N+1,), crc32 u4 (N,): 8-bit PNG, 255 = object
    /tracks      blob u1, offset i8 (N+1,), crc32 u4 (N,): records (x y X Y Z f4, id i8) by rising id; see `tracks.py`

Blobs are contiguous and unfiltered, so that a view is one `pread` away; `captions`, `cameras`, `depth`, `masks`,
`tracks` and the tables of `meta` and `/objects/creator` may be absent, and other groups are ignored.
"""

from __future__ import annotations

SCHEMA = "mvcore.views"
VERSION = 1

CODECS = ("jpeg", "png", "webp")
"""Image formats by their number in `/views/codec`."""

TABLES = ("category", "licence", "source", "creator")
"""What an object may carry as a row of a table of names."""

MAX_SIDE = 16_384
"""Longest side of an image in pixels."""

MAX_PIXELS = 1 << 26
"""Most pixels of an image: a damaged or hostile header cannot ask for more memory than this."""

MAX_NAME_BYTES = 1_024
"""Longest id or name of a table in bytes."""

INDEX_NAME = "index.json"
SHARD_PATTERN = "shard-{:05d}.h5"
SHARD_SUFFIXES = (".h5", ".hdf5")
