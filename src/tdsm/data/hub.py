"""A data set of the Hugging Face hub: a snapshot at one commit, read like any folder."""

import re
import sys
from dataclasses import replace
from pathlib import Path

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.layout import FOLDERS, layout
from tdsm.data.source import Source
from tdsm.data.walk import walk

TIMEOUT = 3.0  # seconds in which the hub must answer about a file
WAYS_OUT = (
    "Download its parquet files elsewhere and pass parquet:FOLDER, or pass a folder of images as folder:ROOT "
    "(ROOT/train/CLASS/*.png), or arrays as npz:FILE."
)


def load_hub(where: str, config: DataConfig) -> Source:
    """Load OWNER/NAME: its files at `revision`, or the newest, from the cache or the network.

    The files mean what they mean in a folder here: parquet, tar, idx or images. No code of the data set is run.

    Raises:
        DataError: If it is neither cached nor reachable, or holds nothing that can be read.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where):
        raise DataError(f"{where!r} is no file or folder here, and no hub id (OWNER/NAME, such as 'uoft-cs/cifar10').")
    snapshot = download(where, config.revision)
    if (kind := layout(snapshot)) == "folder" and not (found := walk(snapshot, follow_links=True)).images:
        raise DataError(
            f"{where}: no images, parquet, tar or idx files at commit {snapshot.name} (seen: {found.listed()}). No "
            "archive is unpacked and no script run; many sets have a parquet copy at revision refs/convert/parquet."
        )
    source = FOLDERS[kind](str(snapshot), config.model_copy(update={"follow_links": True}))
    return replace(source, notes=(f"Hub data set {where} at commit {snapshot.name}.", *source.notes))


def download(where: str, revision: str | None) -> Path:
    """Return the folder of a data set's files at a commit, whose name the folder bears.

    Without a network the cached snapshot is taken.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(where, repo_type="dataset", revision=revision, etag_timeout=TIMEOUT)
        )
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{where}: no such file or folder here, no such data set on the hub, or it is private. "
            f"Check the name, or log in (hf auth login). {WAYS_OUT}"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{where}: has no revision {revision!r}. Give a commit, branch or tag (revision).") from error
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{where}: no such file or folder here, not in the Hugging Face cache, and the hub cannot be reached. "
            f"{WAYS_OUT}"
        ) from error
    except (OSError, ValueError, *_network_errors()) as error:
        raise DataError(f"{where}: cannot be loaded from the hub ({error}). {WAYS_OUT}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what the HTTP library below raises, whichever huggingface_hub uses."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)
