"""What loading a model of any library has in common: one line for whatever goes wrong, and no wait for a hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from mvcore.errors import WeightsError


@contextmanager
def loading(what: str, *, hub: bool) -> Iterator[None]:
    """Turns whatever goes wrong into one line, and keeps the library's logging to itself.

    The libraries log to loggers that they would also configure for the whole program. They, torch, safetensors and
    the hub's client each raise errors of their own, which all mean the same to the user.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with _hub_or_cache() if hub else nullcontext():
            yield
    except ImportError as error:
        missing = error.name or one_line(error)
        raise WeightsError(f"cannot load {what}: it needs {missing}; pip install {missing}") from error
    except Exception as error:
        raise WeightsError(f"cannot load {what}: {_reason(error)}") from error
    finally:
        logging.disable(before)


@contextmanager
def _hub_or_cache() -> Iterator[None]:
    """Without a way to the hub, only its local cache is asked: the hub's client would retry for most of a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return "it is not in the local cache, and the hub cannot be reached; give a local file or folder instead"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)


def one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]} ..."
