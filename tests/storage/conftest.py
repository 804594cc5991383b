"""An S3 protocol server on loopback, behind a proxy that may lose an answer."""

from __future__ import annotations

import http.client
import http.server
import logging
import threading
import urllib.request

import pytest


class Proxy(http.server.BaseHTTPRequestHandler):
    """Forwards to the S3 server; may lose the answer to one request after it was carried out."""

    upstream = ""
    lose: str | None = None
    lost = 0

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kind = type(self)
        if kind.lose and self.command == "PUT" and kind.lose in self.path:
            kind.lose, kind.lost = None, kind.lost + 1
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True


@pytest.fixture(scope="session")
def proxy():
    """What stands between the client and the S3 server."""
    return Proxy


@pytest.fixture(scope="module")
def bucket():
    """The address of a fresh bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    Proxy.upstream = f"{host}:{port}"
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{proxy.server_port}"
    request = urllib.request.Request(f"http://{host}:{port}/caches", method="PUT")
    urllib.request.urlopen(request).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT", endpoint)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        yield "s3://caches"
    proxy.shutdown()
    proxy.server_close()
    server.stop()
