from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from isanet_zoo.errors import SourceError
from isanet_zoo.weights import http
from isanet_zoo.weights.http import Patience, open_url
from tests.weights.server import CERTIFICATE, Answer, Server, closed_url, running

CONTENT = bytes(range(256)) * 400
HASTY = Patience(timeout=10, window=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def secure() -> Iterator[Server]:
    """A server with TLS, whose certificate no system trusts."""
    with running(tls=True) as server:
        yield server


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Change environment variables that huggingface_hub's session reads when it is made."""
    close_session()
    yield monkeypatch
    close_session()


def get(url: str, patience: Patience = HASTY) -> bytes:
    with open_url(url, {}, patience) as response:
        return b"".join(response.iter_raw())


def refusal(url: str, patience: Patience = HASTY) -> SourceError:
    with pytest.raises(SourceError) as caught:
        get(url, patience)
    return caught.value


def redirect(location: str, status: int = 302) -> Answer:
    return Answer(status=status, headers={"Location": location})


def test_request_sends_headers_and_no_compression(server: Server) -> None:
    source = server.source(CONTENT)
    with open_url(source.url, {"Range": "bytes=5-"}, HASTY) as response:
        assert response.status_code == 206
    assert source.seen[0].range == "bytes=5-"
    assert source.seen[0].encoding == "identity"


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, status: int) -> None:
    source = server.source(CONTENT)
    relative = server.source(b"", redirect(source.path, status))
    absolute = server.source(b"", redirect(relative.url, status))
    assert get(absolute.url) == CONTENT


def test_redirect_loop_ends(server: Server) -> None:
    source = server.source(b"")
    source.answers = iter([redirect(source.url)] * 100)
    error = refusal(source.url)
    assert str(error) == f"redirects more than {http.REDIRECTS} times"
    assert error.tries == 1
    assert len(source.seen) == http.REDIRECTS + 1


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "gopher://a/b"])
def test_redirect_to_another_protocol_is_refused(server: Server, target: str) -> None:
    error = refusal(server.source(b"", redirect(target)).url)
    assert str(error) == f"redirects to {target}, which is not http(s)"
    assert error.tries == 1


def test_redirect_text_is_escaped_and_bounded(server: Server) -> None:
    error = refusal(server.source(b"", redirect("x:" + "\x85" * 2000)).url)
    assert str(error).isprintable()
    assert len(str(error)) < 300


@pytest.mark.parametrize("upper", [False, True])
def test_redirect_from_https_to_http_is_refused(
    server: Server, secure: Server, variables: pytest.MonkeyPatch, upper: bool
) -> None:
    variables.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    target = server.source(CONTENT)
    url = target.url.replace("http:", "HTTP:") if upper else target.url
    error = refusal(secure.source(b"", redirect(url)).url)
    assert str(error) == f"redirects to the unencrypted {url}"
    assert error.tries == 1
    assert target.seen == []
    assert get(secure.source(CONTENT).moved_url) == CONTENT
    assert get(server.source(b"", redirect(secure.source(CONTENT).url)).url) == CONTENT


# Connections that cannot be made


def test_unresolved_name_is_explained_and_tried_twice() -> None:
    error = refusal("http://weights.invalid/isanet_tiny.pth")
    assert "does not resolve" in str(error)
    assert "HTTPS_PROXY" in str(error)
    assert error.tries == 2


def test_refused_connection_is_explained_and_tried_twice() -> None:
    error = refusal(closed_url())
    assert "the connection was refused" in str(error)
    assert "HTTPS_PROXY" in str(error)
    assert error.tries == 2


def test_untrusted_certificate_is_explained_and_tried_once(
    secure: Server, variables: pytest.MonkeyPatch
) -> None:
    source = secure.source(CONTENT)
    error = refusal(source.url)
    assert "certificate cannot be verified" in str(error)
    assert "SSL_CERT_FILE" in str(error)
    assert error.tries == 1
    assert source.seen == []
    close_session()
    variables.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert get(source.url) == CONTENT


def test_https_at_a_port_without_tls_is_explained(server: Server) -> None:
    error = refusal(server.source(CONTENT).url.replace("http:", "https:"))
    assert str(error).startswith("no connection (")
    assert error.tries == 2


def test_proxy_that_refuses_is_explained(server: Server, variables: pytest.MonkeyPatch) -> None:
    variables.setenv("HTTPS_PROXY", server.url)  # which does not support CONNECT
    error = refusal("https://weights.invalid/isanet_tiny.pth")
    assert str(error).startswith("no connection (501")
    assert "HTTPS_PROXY" in str(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "nonsense://proxy"),
        ("HTTPS_PROXY", "http://[::1"),
        ("HTTPS_PROXY", "http://proxy:port"),
        ("SSL_CERT_FILE", "/nonexistent.pem"),
        ("SSL_CERT_FILE", os.devnull),
    ],
)
def test_unusable_variable_is_one_error_that_names_it(
    variables: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    variables.setenv(variable, value)
    error = refusal("https://127.0.0.1:1/isanet_tiny.pth")
    assert variable in str(error)
    assert error.tries is not None
    assert error.tries <= 2


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/a.pth",
        "http:///a.pth",
        "http://",
        "http://a\nb/",
        "http://a:port/",
        "http://\u2603.invalid/",
        "http://" + "a" * 70 + ".invalid/",
        "http://127.0.0.1:1/" + "a" * 70_000,
        "http://a\ud800/",
    ],
)
def test_unusable_url_is_one_final_error(url: str) -> None:
    error = refusal(url)
    assert str(error).isprintable()
    assert len(str(error)) < 500
    assert error.tries is not None


# Slow and silent servers


def test_silent_server_ends_after_the_timeout(server: Server) -> None:
    source = server.source(CONTENT, Answer(cut=0, stall=True))
    start = time.monotonic()
    error = refusal(source.url, Patience(timeout=0.2, window=10))
    assert str(error).startswith("the connection broke off")
    assert error.tries is None
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("headers", [False, True])
def test_dripping_server_ends_after_a_window(server: Server, headers: bool) -> None:
    source = server.source(CONTENT, then=Answer(drip=0.02, drip_headers=headers))
    start = time.monotonic()
    error = refusal(source.url, Patience(timeout=10, window=0.2, slowest=1000))
    assert str(error) == "sent fewer than 1000 bytes per second over 0.2 s"
    assert error.tries is None
    assert 0.2 < time.monotonic() - start < 5


def test_steady_server_is_not_too_slow(server: Server) -> None:
    source = server.source(CONTENT[:60], Answer(drip=0.01))
    assert get(source.url, Patience(window=0.3, slowest=4)) == CONTENT[:60]


def test_dripping_server_with_tls_ends_after_a_window(
    secure: Server, variables: pytest.MonkeyPatch
) -> None:
    variables.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    source = secure.source(CONTENT, then=Answer(drip=0.02, drip_headers=True))
    start = time.monotonic()
    error = refusal(source.url, Patience(timeout=10, window=0.2))
    assert str(error).startswith("sent fewer than 1024 bytes per second")
    assert time.monotonic() - start < 5


def test_endless_headers_end(server: Server) -> None:
    padding = {f"X-{number}": "x" * 1000 for number in range(200)}
    error = refusal(server.source(CONTENT, Answer(status=200, headers=padding)).url)
    assert str(error).startswith("the connection broke off")


def test_request_leaves_no_thread_behind(server: Server) -> None:
    before = threading.active_count()
    get(server.source(CONTENT).url)
    refusal(server.source(CONTENT, Answer(cut=5)).url)
    refusal(closed_url())
    assert threading.active_count() <= before + 1  # a thread of the server may still end


def test_error_in_the_block_closes_the_connection(server: Server) -> None:
    source = server.source(CONTENT, Answer(cut=10, stall=True))
    held = []

    def fail() -> None:
        with open_url(source.url, {}, Patience(timeout=10)) as response:
            held.append(response)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert held[0].is_closed


def test_certificate_of_the_tests_is_self_signed() -> None:
    assert ssl.create_default_context(cafile=CERTIFICATE).cert_store_stats()["x509_ca"] == 1
    assert Path(CERTIFICATE).read_text("utf-8").count("BEGIN CERTIFICATE") == 1
