"""Images of the web: only where the recipe allows it, only from public addresses, within limits, once."""

import http.server
import io
import json
import socket
import threading
import time
import urllib.parse

import pytest
from PIL import Image

from firstsight.data import fetch
from firstsight.data.fetch import fetched, is_public
from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

PICTURE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PICTURE, "PNG")


class Answers(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self):
        self.asked.append((self.path, self.headers["Host"]))
        name, _, rest = urllib.parse.unquote(self.path[1:]).partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", rest if "://" in rest else f"/{rest}")
            self.end_headers()
            return
        data = {"a.png": PICTURE.getvalue(), "large": bytes(100_000), "slow": b"x" * 100, "text": b"no image"}.get(
            name.partition("?")[0]
        )
        self.send_response(200 if data else 404)
        self.end_headers()
        try:
            for place in range(0, len(data or b""), 1 if name == "slow" else 2**16):
                self.wfile.write(data[place : place + (1 if name == "slow" else 2**16)])
                time.sleep(0.05 if name == "slow" else 0)
        except OSError:
            pass  # the client left

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine; addresses of this machine count as public."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    Answers.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def rows(tmp_path, url, **settings):
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "What?", "image": url}))
    return load_samples(DataSource(files=(tmp_path / "t.jsonl",), root=tmp_path, **settings))


def test_an_image_is_fetched_once_and_counts_by_its_content(server, tmp_path):
    url = f"{server}/a.png?size=8"
    (first,), (again,) = rows(tmp_path, url, allow_urls=True), rows(tmp_path, url, allow_urls=True)
    assert Answers.asked == [("/a.png?size=8", server.removeprefix("http://"))]
    assert first.open_images()[0].getpixel((0, 0)) == (255, 0, 0)
    assert str(first.images[0]) == url
    (tmp_path / "a.png").write_bytes(PICTURE.getvalue())
    (local,) = rows(tmp_path, "a.png")
    assert first.key == again.key == local.key
    (moved,) = rows(tmp_path, f"{server}/to/to/a.png", allow_urls=True)
    assert moved.key == local.key


def test_nothing_is_fetched_without_leave(server, tmp_path):
    part = {"type": "image_url", "image_url": {"url": f"{server}/a.png"}}
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
    with pytest.raises(DataError, match=r"is an address; set data\.allow_urls: true to fetch it"):
        load_samples(tmp_path / "t.jsonl")
    assert Answers.asked == []


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "192.168.1.1", "172.16.0.9", "127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "2001:db8::1", "2001:0:7f00:1::",
     "fec0::1", "3fff::1", "192.0.0.8"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"]
)
def test_every_way_to_write_this_machine_is_refused(tmp_path, monkeypatch, host):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        DataError, match=r"t:1: image http://.*(which is not an address of the public internet|cannot be fetched)"
    ) as error:
        fetched(f"http://{host}:9/a.png", "t:1")
    assert "\n" not in str(error.value)


def test_a_redirect_is_checked_as_its_first_address(server):
    for there in ("http://10.0.0.1/a.png", "http://[::1]:9/a.png", "http://169.254.169.254/latest/meta-data/"):
        with pytest.raises(DataError, match=r"which is not an address of the public internet"):
            fetched(f"{server}/to/{there}", "t:1")
    for there in ("file:///etc/hostname", "ftp://127.0.0.1/a.png"):
        with pytest.raises(DataError, match=r"leads to .* expected an http or https address"):
            fetched(f"{server}/to/{there}", "t:1")
    with pytest.raises(DataError, match=r"is redirected more than 5 times"):
        fetched(f"{server}/{'to/' * 7}a.png", "t:1")


def test_every_address_of_a_name_is_checked_and_a_checked_one_is_used(server, monkeypatch):
    port = int(server.rpartition(":")[2])
    answers = {"good.example": ["127.0.0.1"], "bad.example": ["127.0.0.1", "10.0.0.1"]}
    asked = []

    def resolve(host, port, *_, **__):
        if host in answers:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers[host]]
        return stock(host, port, *_, **__)

    stock = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetched(f"http://good.example:{port}/a.png", "t:1").read_bytes() == PICTURE.getvalue()
    assert asked == ["good.example"]  # resolved once: the second answer of a server that rebinds is never asked for
    assert Answers.asked == [("/a.png", f"good.example:{port}")]
    with pytest.raises(DataError, match=r"bad\.example is 10\.0\.0\.1, which is not an address"):
        fetched(f"http://bad.example:{port}/a.png", "t:1")


def test_limits_and_answers_that_are_no_image(server, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"the server answers 404 Not Found"):
        fetched(f"{server}/none", "t:1")
    monkeypatch.setattr(fetch, "MAX_BYTES", 50_000)
    with pytest.raises(DataError, match=r"has more than 0 MiB; scale it down"):
        fetched(f"{server}/large", "t:1")
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"takes more than 0\.3 s"):
        fetched(f"{server}/slow", "t:1")
    assert time.monotonic() - begin < 3
    assert not (tmp_path / "cache" / "firstsight").exists()
    for url, message in (
        ("http://user:secret@127.0.0.1/a.png", r"user name or password"),
        ("http:///a.png", r"expected an http or https address"),
        ("http://127.0.0.1:1/a.png", r"cannot be fetched \("),
        ("http://[::1/a.png", r"cannot be fetched \("),
    ):
        with pytest.raises(DataError, match=message):
            fetched(url, "t:1")
    with pytest.raises(DataError, match=r"is an address of a kind that is not supported"):
        rows(tmp_path, "s3://bucket/a.png", allow_urls=True)


def test_what_a_server_sends_is_no_image(server, tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match=r"text: is not an image; open the address in a browser"):
            rows(tmp_path, f"{server}/text", allow_urls=True)
    assert len(Answers.asked) == 2  # nothing is kept: it may be an image the next time


def test_a_directory_that_cannot_be_written_is_named_with_the_row(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(DataError, match=r"t\.jsonl:1: an image from the web cannot be saved in .*set XDG_CACHE_HOME"):
        rows(tmp_path, f"{server}/a.png", allow_urls=True)
