"""Exceptions of isanet_zoo.

::

    ZooError
    ├── UnknownModelError   (LookupError)   no such model, tag or class
    ├── ManifestError       (ValueError)    the manifest is missing or wrong
    ├── InputError          (ValueError)    an image, mask or option that cannot be used
    ├── CheckpointError     (RuntimeError)  a file that is unsafe, or does not fit the network
    ├── ExportError         (RuntimeError)  an exported file with other results than its network
    ├── IntegrityError      (ValueError)    bytes that differ from the manifest or the cache
    ├── SourceError         (OSError)       one source did not return the file
    ├── DownloadError       (OSError)       no source did, or the cache cannot be used
    │   └── OfflineError                    offline mode is on
    ├── UploadError         (OSError)       the Hugging Face Hub did not accept a model
    └── EnvironmentProblem  (ImportError)   installed packages that do not fit together

Each is also the built-in that a caller would expect, so `except ValueError` works as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 4000  # characters


def printable(text: object, limit: int = 200) -> str:
    """Return text from an untrusted file or server so that it can be shown on a terminal.

    Control characters, unpaired surrogates and other characters that are not printable are
    escaped; what exceeds `limit` characters is cut.
    """
    shown = str(text)[: limit + 1]
    cut = len(shown) > limit
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in shown[:limit]
    )
    return shown[:limit] + "..." if cut or len(shown) > limit else shown


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the known names that are close to a wrong one, for an error, or other advice."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else otherwise


class ZooError(Exception):
    """The base class of all errors below.

    The message is made safe for terminals: its lines are passed through `printable`, and it has at
    most `LONGEST_MESSAGE` characters. Error messages name the types, not the values, of objects
    that come from untrusted files.
    """

    def __init__(self, message: str = "") -> None:
        lines = message[: LONGEST_MESSAGE + 1].split("\n")
        text = "\n".join(printable(line, LONGEST_MESSAGE) for line in lines)
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE - 3]}..."
        super().__init__(text)


class UnknownModelError(ZooError, LookupError):
    """A model, tag or class that does not exist."""


class ManifestError(ZooError, ValueError):
    """`weights_manifest.json` is missing or wrong; the message names the place in it."""


class InputError(ZooError, ValueError):
    """An image, mask or option that cannot be used: which one, why, and what to do instead."""


class CheckpointError(ZooError, RuntimeError):
    """A weight file that cannot be read safely, or whose tensors are not the network's."""


class ExportError(ZooError, RuntimeError):
    """An exported file whose results differ from the network's; it was not written."""


class IntegrityError(ZooError, ValueError):
    """Bytes that differ from the manifest, or from what the cache recorded."""


class SourceError(ZooError, OSError):
    """One source did not return the file; `DownloadError.tried` has such errors.

    Attributes:
        tries: attempts in all after which another one is unlikely to help; None for no limit.
        wait: seconds to wait before the next attempt (`Retry-After`).
    """

    def __init__(self, message: str, *, tries: int | None = None, wait: float = 0.0) -> None:
        super().__init__(message)
        self.tries = tries
        self.wait = wait


def connection_error(error: BaseException) -> SourceError | None:
    """Return why a server could not be reached, with the way out; None for other errors.

    Args:
        error: an error of httpx or urllib; its causes are searched, too.
    """
    import socket
    import ssl

    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceError(
                f"the server's certificate cannot be verified ({cause.verify_message}); if your "
                "network has its own certificate authority, name its file in SSL_CERT_FILE",
                tries=1,
            )
        if isinstance(cause, socket.gaierror):
            reason = "the server's name does not resolve"
        elif isinstance(cause, ConnectionRefusedError):
            reason = "the connection was refused"
        elif type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "URLError"):
            reason = f"no connection ({printable(cause) or 'timed out'})"
        else:
            continue
        advice = "check your network, and HTTPS_PROXY and HTTP_PROXY if it has a proxy"
        return SourceError(f"{reason}; {advice}", tries=2)
    return None


class DownloadError(ZooError, OSError):
    """No source returned an acceptable file, or the cache cannot be read or written.

    Attributes:
        tried: each source that was tried, with its error.
    """

    def __init__(self, message: str, tried: Sequence[tuple[str, Exception]] = ()) -> None:
        super().__init__(message)
        self.tried = list(tried)


class OfflineError(DownloadError):
    """The file is not cached and offline mode is on."""


class UploadError(ZooError, OSError):
    """The Hugging Face Hub did not accept a model; the message has the reason and the way out."""


class EnvironmentProblem(ZooError, ImportError):  # noqa: N818 - it is not the library's error
    """Installed packages that do not fit together; the message has the command that helps."""
