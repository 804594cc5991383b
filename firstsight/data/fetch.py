"""Images from the web, for `data.allow_urls`: only from public addresses, within limits, each fetched once and kept.

Every address that a name resolves to is checked, and the connection goes to a checked one, not to the name: a name that resolves
differently a moment later changes nothing. A redirect is checked like the first address. Proxies from the environment are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import urllib3
from PIL import Image, UnidentifiedImageError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from firstsight.errors import DataError

MAX_BYTES = 64 * 2**20
SECONDS = 60.0
"""For one image, redirects included."""
_MAX_REDIRECTS = 5
_WAIT = 10.0  # seconds for a connection, and between two pieces of an answer
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_GLOBAL = [ipaddress.ip_network(each) for each in ("192.0.0.0/24", "fec0::/10", "3fff::/20", "5f00::/16")]
"""Networks that some versions of `ipaddress` call global: IETF's own, site-local, documentation, segment routing."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, reserved or multicast.

    An IPv6 address that holds an IPv4 address is public if both are.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip in _NAT64:  # not an address of its own: the last 32 bits are the real one
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = [ip.sixtofour, *(ip.teredo or ())]
        if not all(is_public(str(each)) for each in inner if each is not None):
            return False
    if any(ip in network for network in _NOT_GLOBAL):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local or ip.is_unspecified)


def fetched(url: str, place: str, *, public: Callable[[str], bool] | None = None) -> Path:
    """The file of an image from the web, in the user's cache directory (`XDG_CACHE_HOME`, or `~/.cache`).

    Args:
        url: http or https.
        place: of the row, for messages.
        public: whether an IP address may be connected to; None: `is_public`.

    Raises:
        DataError: the address is not public, has no image, or the image is too large or too slow.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstsight" / "images"
    path = cache / hashlib.sha256(url.encode()).hexdigest()
    if not path.is_file():
        try:
            data = _get(url, public or is_public)
            _check_image(data)
        except _Refused as refused:
            raise DataError(f"{place}: image {url[:200]}: {refused}") from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise DataError(
                f"{place}: image {url[:200]}: cannot be fetched ({' '.join(str(error).split())[:200]})"
            ) from None
        _keep(path, data, place)
    return path


def _keep(path: Path, data: bytes, place: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        raise DataError(
            f"{place}: an image from the web cannot be saved in {path.parent} ({error.strerror or error}); set XDG_CACHE_HOME to one "
            "that can be written"
        ) from None


class _Refused(Exception):
    """Why an address is not fetched."""


def _check_image(data: bytes) -> None:
    """Refuse anything that is not an image, such as a log-in page, since what is kept is not fetched again."""
    unknown = False
    with contextlib.suppress(Exception):  # of an image, which is checked where it is used
        try:
            Image.open(io.BytesIO(data)).close()
        except UnidentifiedImageError:
            unknown = True
    if unknown:
        raise _Refused("is not an image; open the address in a browser to see what it is")


def _get(url: str, public: Callable[[str], bool]) -> bytes:
    ends = time.monotonic() + SECONDS
    for _ in range(_MAX_REDIRECTS + 1):
        found = _ask(parse_url(url), public, ends)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise _Refused(f"is redirected more than {_MAX_REDIRECTS} times")


def _ask(url: Url, public: Callable[[str], bool], ends: float) -> bytes | str:
    """The content, or the address of a redirect."""
    if url.scheme not in ("http", "https") or not url.host:
        raise _Refused(f"leads to {str(url)[:200]!r}; expected an http or https address")
    if url.auth:
        raise _Refused("has a user name or password in it; remove it")
    host = url.host.strip("[]")
    port = url.port or (443 if url.scheme == "https" else 80)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    if inner := [address for address in addresses if not public(address)]:
        raise _Refused(
            f"{host} is {inner[0]}, which is not an address of the public internet; download the image and give its path"
        )
    with _connection(url, host, addresses, port, ends) as connection:
        headers = {"Host": url.netloc or host, "User-Agent": "firstsight", "Accept": "image/*"}
        connection.request("GET", url.request_uri, headers=headers, preload_content=False, decode_content=False)
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and (there := answer.headers.get("Location")):
            return str(there)
        if answer.status != 200:
            raise _Refused(f"the server answers {answer.status} {answer.reason}")
        content = bytearray()
        while piece := answer.read1(2**16):
            content += piece
            if len(content) > MAX_BYTES:
                raise _Refused(f"has more than {MAX_BYTES // 2**20} MiB; scale it down")
    return bytes(content)


@contextlib.contextmanager
def _connection(url: Url, host: str, addresses: list[str], port: int, ends: float) -> Iterator[HTTPConnection]:
    """A connection to the first of the checked addresses that answers; cut when time is up."""
    late = threading.Event()
    for address in addresses:
        if url.scheme == "https":
            connection: HTTPConnection = HTTPSConnection(
                address,
                port,
                timeout=_WAIT,
                server_hostname=host,
                assert_hostname=host,
                ssl_context=ssl.create_default_context(),
            )
        else:
            connection = HTTPConnection(address, port, timeout=_WAIT)
        held: list[socket.socket] = []  # a response that closes its connection takes its socket
        timer = threading.Timer(max(0.0, ends - time.monotonic()), _cut, (connection, held, late))
        timer.daemon = True
        timer.start()
        try:
            try:
                connection.connect()
            except (urllib3.exceptions.HTTPError, OSError):
                if address == addresses[-1]:
                    raise
                continue
            assert connection.sock is not None
            held.append(connection.sock)
            yield connection
            if late.is_set():
                raise _Refused(f"takes more than {SECONDS:g} s")
            return
        except (urllib3.exceptions.HTTPError, OSError, ValueError):  # ValueError: TLS that was cut
            if late.is_set():
                raise _Refused(f"takes more than {SECONDS:g} s") from None
            raise
        finally:
            timer.cancel()
            connection.close()


def _cut(connection: HTTPConnection, held: list[socket.socket], late: threading.Event) -> None:
    late.set()
    for sock in held or [connection.sock]:
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
