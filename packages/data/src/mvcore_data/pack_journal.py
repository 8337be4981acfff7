"""`OUT.partial`: the store in the making beside a journal, so that a pack that was interrupted goes on where it stood.

    OUT.partial/store          a store whose finished shards are published one by one
    OUT.partial/journal.json   what is packed and how, and the counts at the last two publications

The journal is written before a shard is published, and holds the state before and after it; the number of objects in
the store's index says which of the two counts.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from mvcore.api import DataError

from mvcore_data.importers.base import Skipped
from mvcore_data.index import read_index, sync_folder
from mvcore_data.lock import LOCK_NAME, StoreLock
from mvcore_data.schema import INDEX_NAME

_JOURNAL = "journal.json"
_STORE = "store"
_KIND = "mvcore data pack"


@dataclass
class PackState:
    """How far a pack is.

    Args:
        objects, views: in the store.
        position: objects of the source that were dealt with.
        ids: a digest of their ids in order.
        reencoded: images by why their bytes could not be kept.
        skipped: what was left out.
    """

    objects: int = 0
    views: int = 0
    position: int = 0
    ids: str = ""
    reencoded: dict[str, int] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)

    def pass_by(self, id: str) -> None:
        """Counts an object of the source."""
        self.position += 1
        self.ids = sha256(f"{self.ids}\0{id}".encode(errors="surrogatepass")).hexdigest()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PackState:
        """The state that `asdict` made."""
        return cls(**{**value, "skipped": Skipped(**value["skipped"])})


class PartialStore:
    """The folder of one pack; only one process at a time holds it.

    Args:
        out: where the store will be.
        identity: what is packed and how, by names of the command's options; JSON.

    Attributes:
        store: where to write.
        state: what the journal says of the store's published part.

    Raises:
        DataError: it holds another pack, is damaged, or cannot be written.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.store = self.folder / _STORE
        self._identity = identity
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = StoreLock(self.folder / LOCK_NAME)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written ({error.strerror})") from None
        try:
            self.state = self._saved = self._resume()
            self.save(self.state)
        except BaseException:
            self.close()
            raise

    @property
    def published(self) -> int:
        """Objects in the store's published shards."""
        if not (self.store / INDEX_NAME).exists():
            return 0
        return sum(entry.objects for entry in read_index(self.store).shards)

    def save(self, state: PackState) -> None:
        """Records the state that the next publication will have.

        Raises:
            DataError: it cannot be written.
        """
        value = {"kind": _KIND, "identity": self._identity, "states": [asdict(self._saved), asdict(state)]}
        self._saved = PackState.from_json(json.loads(json.dumps(asdict(state))))
        temporary = self.folder / f"{_JOURNAL}.tmp"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / _JOURNAL)
            sync_folder(self.folder)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def publish(self) -> None:
        """Gives the finished store its name.

        Raises:
            DataError: the name was taken meanwhile.
        """
        try:
            self.store.rename(self.out)
            sync_folder(self.out.parent)
        except OSError as error:
            raise DataError(f"{self.out}: cannot be made ({error.strerror}); the store is {self.store}") from None
        (self.folder / _JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the folder; removes it where it holds no published shard."""
        if not (self.store / INDEX_NAME).exists():
            with suppress(OSError):
                self.store.rmdir()
            if not self.store.exists() and self._is_ours():
                for name in (_JOURNAL, f"{_JOURNAL}.tmp"):
                    (self.folder / name).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):
            self.folder.rmdir()

    def _is_ours(self) -> bool:
        try:
            return json.loads((self.folder / _JOURNAL).read_bytes()).get("kind") == _KIND
        except (OSError, ValueError, AttributeError):
            return not (self.folder / _JOURNAL).exists()

    def _resume(self) -> PackState:
        """The state of the published part, after everything that was not published is removed."""
        journal = self.folder / _JOURNAL
        if not journal.exists():
            known = {LOCK_NAME, f"{_JOURNAL}.tmp"}
            if other := next((path.name for path in self.folder.iterdir() if path.name not in known), None):
                raise DataError(f"{self.folder}: is in the way: holds {other!r} and no pack; move it away")
            return PackState()
        states = self._read(journal)
        self._remove_unpublished()
        published = self.published
        state = next((state for state in states if state.objects == published), None)
        if state is None:
            raise DataError(f"{journal}: does not fit the {published} objects beside it; remove {self.folder}")
        return state

    def _read(self, journal: Path) -> list[PackState]:
        try:
            value = json.loads(journal.read_bytes())
            identity, states = value["identity"], [PackState.from_json(state) for state in value["states"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{journal}: damaged; remove {self.folder} to start anew") from None
        changed = [key for key, now in self._identity.items() if identity.get(key) != now]
        if changed:
            was = ", ".join(f"{key} {identity.get(key)!r}, now {self._identity[key]!r}" for key in changed)
            raise DataError(
                f"{self.folder}: holds an unfinished pack with {was}; repeat that one, or remove the folder"
            )
        return states

    def _remove_unpublished(self) -> None:
        """A shard may have got its name without the index having come to know it."""
        if not (self.store / INDEX_NAME).exists():
            shutil.rmtree(self.store, ignore_errors=True)
            return
        known = {entry.file for entry in read_index(self.store).shards}
        for path in self.store.glob("shard-*"):
            if path.name not in known:
                path.unlink()
