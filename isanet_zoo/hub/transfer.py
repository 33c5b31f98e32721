"""All traffic with the Hugging Face hub: files come and go whole, and its errors become ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isanet_zoo.cache import offline
from isanet_zoo.errors import DownloadError, InputError, OfflineError, UploadError
from isanet_zoo.version import __version__

PREFIX = "hf-hub:"  # how an address starts that means a repository, as timm writes it

SIGN_IN = "`hf auth login`, or give a token (token=, or the variable HF_TOKEN)"
NO_NETWORK = "the network is switched off: unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE"


class Address(NamedTuple):
    """A repository of models on the hub, and which state of it."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse(text: str) -> Address:
    """Read an address like ``"hf-hub:org/repo@revision"``; the revision may be left out.

    Raises:
        InputError: it is not like that.

    Example:
        >>> parse("hf-hub:someone/streets@v1.0")
        Address(repo='someone/streets', revision='v1.0')
    """
    repo, at, revision = text.removeprefix(PREFIX).partition("@")
    if at and not revision:
        raise InputError(f"{text!r} names no revision after the @; give one, or leave the @ out")
    return Address(check_name(repo), revision or None)


def check_name(repo: str) -> str:
    """Return the name of a repository, if it can be one.

    Raises:
        InputError: it cannot.
    """
    if not is_name(repo):
        raise InputError(f"{repo!r} is no repository of the hub; give its name as 'org/repo'")
    return repo


def is_name(text: str) -> bool:
    """Say whether a text can be the name of a repository, rather than a path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def snapshot(
    address: Address, files: Sequence[str], *, token: str | None = None, progress: bool = True
) -> Path:
    """Return a folder with files of a repository, all of one commit; those it lacks are missing.

    They are kept in huggingface_hub's cache, which also serves where the hub cannot be asked.

    Args:
        address: the repository; its main branch where no revision is said.
        files: their names.
        token: for a private repository; the one that is stored on this machine if None.
        progress: show bars on stderr.

    Raises:
        OfflineError: it is not cached, and the user asked for no network.
        DownloadError: the hub does not have it, does not give it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _naming_downloads(address):
        folder = snapshot_download(
            address.repo,
            revision=address.revision,
            allow_patterns=list(files),
            token=token,
            local_files_only=offline(),
            library_name="isanet_zoo",
            library_version=__version__,
            tqdm_class=None if progress else _silent(),
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
    """Put files into a repository in one commit, and create it if there is none.

    Args:
        repo: its name.
        files: where each lies here, by its path there.
        message: of the commit.
        private: create it so that only its owners see it.
        token: of somebody who may write there; the one that is stored on this machine if None.

    Returns:
        The commit.

    Raises:
        InputError: the name cannot be one.
        UploadError: the hub refused, or cannot be reached; or the repository is public already,
            and `private` was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_name(repo)
    if offline():
        raise UploadError(f"{repo} was not written: {NO_NETWORK}")
    api = HfApi(token=token, library_name="isanet_zoo", library_version=__version__)
    with _naming_uploads(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UploadError(
                f"{repo} exists and is public; nothing was written. Make it private in its "
                "settings, take another name, or leave out private"
            )
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
            for name, path in files.items()
        ]
        # One commit, and not `upload_folder`, which may make several: no reader of the main branch
        # gets the config of one model and the tensors of another.
        commit = api.create_commit(repo, additions, commit_message=message)
    return commit.oid


def _silent() -> type[Any]:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = True
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return Silent


@contextlib.contextmanager
def _naming_downloads(address: Address) -> Iterator[None]:
    """Turn the hub's errors into the one that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{address} is gated: ask for access on its page, then {SIGN_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub shows no repository {address.repo}: there is none, or it is private. Check "
            f"the name; for a private one, {SIGN_IN} of somebody who may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(
            f"{address.repo} has no revision {address.revision!r}; give one of its branches, tags "
            "or commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if offline() or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise OfflineError(
                f"{address} is not on this machine, and {NO_NETWORK}; or load it once while there "
                "is one; or copy its folder here and name that"
            ) from error
        raise DownloadError(_unreachable(address.repo, error.__cause__ or error)) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise DownloadError(_unreachable(address.repo, error)) from error


@contextlib.contextmanager
def _naming_uploads(repo: str) -> Iterator[None]:
    """Turn the hub's errors into the one that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except UploadError:
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise UploadError(
                f"the hub does not let you write to {repo} (it answered {status}): {SIGN_IN} of "
                "somebody who may"
            ) from error
        raise UploadError(f"{repo} was not written: {_first_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UploadError(f"{repo} was not written: {NO_NETWORK}") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise UploadError(_unreachable(repo, error)) from error
    except (RuntimeError, ValueError) as error:  # one file's transfer; a card that is refused
        cause = error.__cause__ or error
        raise UploadError(
            f"{repo} was not written: {_first_line(error)} ({_first_line(cause)})"
        ) from error


def _unreachable(repo: str, error: BaseException) -> str:
    from huggingface_hub import constants

    return (
        f"{repo}: the hub at {constants.ENDPOINT} could not be asked ({_first_line(error)}); "
        "check the connection, and HF_ENDPOINT if it is set, and try again"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
