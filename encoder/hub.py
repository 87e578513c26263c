"""Encoders by their name on the Hugging Face hub, `org/name` → a folder on this machine."""

import re
from pathlib import Path

from chromseek.data.errors import ChromseekError, NotFound, StorageError, printable

FILES = ("config.json", "model.safetensors", "universe.bed.gz")
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_hub_name(text: str | Path) -> bool:
    """Whether a text could be a name on the hub.

    >>> is_hub_name("databio/atacformer-base-hg38"), is_hub_name("./encoders/mine"), is_hub_name("mine")
    (True, False, False)
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def fetched(name: str, revision: str | None = None) -> Path:
    """The folder of an encoder: `name` itself where it is a folder here, else its three files from the hub's cache.

    What the cache lacks is downloaded. Raises NotFound for a name that is not there or not open to everyone and for a
    hub that cannot be reached, StorageError for a download that breaks off or cannot be stored.
    """
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_name(name):
        raise NotFound(
            f"no folder {printable(name)}, and no name on the Hugging Face hub, which is org/name",
            code="ENCODER-FOLDER",
            got=name,
            fix="give the folder of a saved encoder, or a name such as databio/atacformer-base-hg38",
        )
    from huggingface_hub import hf_hub_download  # only here: it takes half a second to import

    try:
        cut_off = not _answers(name, revision)
        config = Path(hf_hub_download(name, FILES[0], revision=revision, local_files_only=cut_off))
        for file in FILES[1:]:  # of the same commit, whatever is pushed meanwhile
            hf_hub_download(name, file, revision=config.parent.name, local_files_only=cut_off)
    except Exception as error:  # whatever the hub, the network and the disk may have
        raise _failed(name, revision, error) from error
    return config.parent


def _answers(name: str, revision: str | None) -> bool:
    """Whether the hub can be asked: a client that finds it silent would try again for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, FILES[0], revision=revision))
    except HfHubHTTPError:
        return True  # with a refusal, which the download will meet again
    except Exception:  # of the network, or because the user has said to stay offline
        return False
    return True


def _failed(name: str, revision: str | None, error: Exception) -> ChromseekError:
    """What went wrong, in the user's words."""
    from huggingface_hub import errors

    called = printable(name) if revision is None else f"{printable(name)} ({printable(revision)})"
    by_hand = f"download {', '.join(FILES)} from https://huggingface.co/{printable(name)} by hand and give their folder"
    for kind, what in (
        (errors.GatedRepoError, f"{called} is on the hub, but not open to everyone"),
        (errors.RepositoryNotFoundError, f"neither a folder here nor a public name on the hub: {called}"),
        (errors.RevisionNotFoundError, f"the hub has no such version: {called}"),
        (errors.RemoteEntryNotFoundError, f"{called} is on the hub, but lacks one of {', '.join(FILES)}"),
        (errors.LocalEntryNotFoundError, f"{called} is no folder here, and the hub cannot be reached for it"),
        (errors.HFValidationError, f"neither a folder here nor a name that the hub allows: {called}"),
    ):
        if isinstance(error, kind):
            return NotFound(what, code="ENCODER-HUB", got=name, fix=by_hand)
    reason = printable(str(error).partition("\n")[0] or type(error).__name__, 200)
    what, exit_code = f"{called} could not be downloaded: {reason}", 77 if isinstance(error, PermissionError) else None
    return StorageError(what, code="ENCODER-HUB", got=name, fix=by_hand, exit_code=exit_code)


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so (9 bytes or more) is a pickle, or a zip, which may hold one; no safetensors is.

    A safetensors file begins with the length of its header, which may look like a pickle, and the header with a brace.

    >>> is_pickle(b"PK" + bytes(7)), is_pickle(b"PK" + bytes(6) + b"{")
    (True, False)
    """
    return head[:2] in _PICKLES and head[8:9] != b"{"
