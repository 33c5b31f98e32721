"""Download from and upload to the Hugging Face Hub, with its errors translated."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import tqdm, validate_repo_id  # type: ignore[attr-defined]

from isanet_zoo.cache import offline
from isanet_zoo.errors import (
    DownloadError,
    InputError,
    OfflineError,
    UploadError,
    ZooError,
    connection_error,
    printable,
)
from isanet_zoo.version import __version__

PREFIX = "hf-hub:"  # of the name of a repository, as in timm

SIGN_IN = "`hf auth login`, or pass a token (token=, or the variable HF_TOKEN)"
OFFLINE = "offline mode is on: unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE"
DENIED = f"no permission to write to {{repo}} ({{reason}}): {SIGN_IN} with write access"
FAILED = "{repo} was not written: {reason}"
UNREACHABLE = (
    "{repo}: could not reach the Hub at {endpoint} ({reason}); check HF_ENDPOINT if it is set, and "
    "try again"
)
UNUSABLE_CACHE = (
    "{repo}: huggingface_hub's cache {cache} cannot be used ({reason}); check its owner, "
    "permissions and free space, or name another folder in HF_HUB_CACHE"
)
DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS)
DOWNLOAD = {  # error of huggingface_hub -> message; `UNREACHABLE` for all others
    "GatedRepoError": f"{{address}} is gated: request access on its page, then {SIGN_IN}",
    "RepositoryNotFoundError": "there is no repository {repo}, or it is private: check the name; "
    f"for a private one, {SIGN_IN} with read access",
    "RevisionNotFoundError": "{address}: there is no such branch, tag or commit",
    "OfflineModeIsEnabled": f"{{address}} is not on this machine, and {OFFLINE}; or load it once "
    "while online; or copy its folder here and pass that",
}
UPLOAD = {
    "OfflineModeIsEnabled": f"{{repo}} was not written: {OFFLINE}",
    "HfHubHTTPError": FAILED,
    "RuntimeError": FAILED,  # of one file
    "ValueError": FAILED,  # a model card that the Hub refuses
}


@dataclass(frozen=True)
class Address:
    """A repository on the Hub, and a branch, tag or commit; InputError if they cannot be one."""

    repo: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not is_name(self.repo):
            raise InputError(
                f"'{printable(self.repo)}' is not a repository of the Hub; write its name as "
                "'org/repo'"
            )
        if self.revision is not None and not _is_revision(self.revision):
            raise InputError(
                f"revision '{printable(self.revision)}' is not a branch, tag or commit"
            )

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse(text: str) -> Address:
    """Parse a name like ``"hf-hub:org/repo@revision"``; the revision is optional.

    Raises:
        InputError: it has another form.

    Example:
        >>> parse("hf-hub:someone/streets@v1.0")
        Address(repo='someone/streets', revision='v1.0')
    """
    repo, at, revision = text.removeprefix(PREFIX).partition("@")
    return Address(repo, revision if at else None)


def is_name(text: str) -> bool:
    """Return True if a text can be the name of a repository, rather than a path."""
    try:
        validate_repo_id(text)
    except errors.HFValidationError:
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII) is not None


def _is_revision(text: str) -> bool:
    """Return True for a git reference or commit: nothing that means more in a path or URL."""
    return (
        len(text) <= 200
        and re.fullmatch(r"\w[\w./+@-]*", text) is not None
        and not re.search(r"\.\.|//|/\.|@$|\.$|/$|\.lock(/|$)", text)
    )


def snapshot(
    address: Address, files: Sequence[str], *, token: str | None = None, progress: bool = True
) -> Path:
    """Return a folder with files of a repository, all of one commit, without missing ones.

    They are kept in huggingface_hub's cache, which is also used if the Hub cannot be reached.

    Args:
        address: the repository; its main branch if the revision is None.
        files: their names.
        token: for a private repository; the one stored on this machine if None.
        progress: show bars on stderr.

    Raises:
        OfflineError: it is not cached, and offline mode is on.
        DownloadError: the Hub does not have it, does not allow it, or cannot be reached.
    """
    with _translated(address, DOWNLOAD):
        folder = snapshot_download(
            address.repo,
            revision=address.revision,
            allow_patterns=list(files),
            token=token,
            local_files_only=offline(),
            library_name="isanet_zoo",
            library_version=__version__,
            tqdm_class=None if progress else _Silent,
        )
    return Path(folder)


def upload(
    repo: str,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload files to a repository in one commit; create the repository if there is none.

    Args:
        repo: its name.
        files: path in the repository -> file on this machine.
        message: of the commit.
        private: create a repository that only its owners see.
        token: with write access; the one stored on this machine if None.

    Returns:
        The commit.

    Raises:
        InputError: the name cannot be one.
        UploadError: the Hub refused or cannot be reached; or the repository is public already,
            although `private` is True.
    """
    address = Address(repo)
    api = HfApi(token=token, library_name="isanet_zoo", library_version=__version__)
    with _translated(address, UPLOAD):
        if offline():
            raise errors.OfflineModeIsEnabled
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UploadError(
                f"{repo} exists and is public; nothing was written. Make it private in its "
                "settings, use another name, or leave out private"
            )
        # One commit, unlike `upload_folder`, which may make several: no download combines the
        # config of one model with the tensors of another.
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        return api.create_commit(repo, additions, commit_message=message).oid


class _Silent(tqdm):
    """A progress bar that draws nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _translated(address: Address, messages: Mapping[str, str]) -> Iterator[None]:
    """Convert errors of huggingface_hub with the table `DOWNLOAD` or `UPLOAD`."""
    try:
        yield
    except ZooError:
        raise
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        raise _translate(error, address, messages) from error


def _translate(error: BaseException, address: Address, messages: Mapping[str, str]) -> ZooError:
    """Return the `UploadError`, `DownloadError` or `OfflineError` for an error."""
    if isinstance(error, errors.LocalEntryNotFoundError):  # for any reason
        error = errors.OfflineModeIsEnabled() if offline() else error.__cause__ or error
    names = [kind.__name__ for kind in type(error).__mro__]
    text = next((messages[name] for name in names if name in messages), UNREACHABLE)
    if messages is UPLOAD and _status(error) in (401, 403, 404):
        text = DENIED
    elif getattr(error, "errno", None) in DISK_ERRORS:
        text = UNUSABLE_CACHE
    reason = connection_error(error) or _first_line(error)
    if text == FAILED and error.__cause__:
        reason = f"{reason} ({_first_line(error.__cause__)})"
    message = text.format(
        reason=reason,
        address=address,
        repo=address.repo,
        endpoint=constants.ENDPOINT,
        cache=constants.HF_HUB_CACHE,
    )
    if messages is UPLOAD:
        return UploadError(message)
    return (OfflineError if "OfflineModeIsEnabled" in names else DownloadError)(message)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return printable(str(error).strip().partition("\n")[0] or type(error).__name__)
