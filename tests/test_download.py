"""Downloads against a server on this machine."""

import hashlib
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from danet.datasets.download import DownloadError, fetch, install

BODY = bytes(range(256)) * 20_000  # more than one chunk
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server():
    """Address and requests; /good gives BODY, /short a part of it, /slow and /hangup nothing, others 404."""
    requests = []
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            requests.append(self.path)
            if self.path == "/slow":
                release.wait(10)
            if self.path in ("/slow", "/hangup"):
                return
            if self.path not in ("/good", "/short"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY if self.path == "/good" else BODY[:1000])

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        release.set()
        http.shutdown()


def test_file_arrives_whole_and_is_fetched_once(server, tmp_path):
    address, requests = server
    path = tmp_path / "new" / "file.bin"
    fetch(f"{address}/good", path, md5=MD5)
    assert path.read_bytes() == BODY
    fetch(f"{address}/good", path, md5=MD5)
    assert requests == ["/good"]


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    address, _ = server
    path = tmp_path / "file.bin"
    path.write_bytes(BODY[:-1])
    fetch(f"{address}/good", path, md5=MD5)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "checksum", "message"),
    [
        ("good", "0" * 32, rf"md5 is {MD5}, expected 0000"),
        ("absent", MD5, "the server answered 404 Not Found"),
        ("short", MD5, f"broke off after 1000 of {len(BODY)} bytes"),
        ("hangup", MD5, "the connection broke off"),
        ("slow", MD5, "no answer for 0.2 seconds"),
    ],
)
def test_failures_say_why_and_leave_nothing(server, tmp_path, page, checksum, message):
    address, _ = server
    with pytest.raises(DownloadError, match=message):
        fetch(f"{address}/{page}", tmp_path / "file.bin", md5=checksum, timeout=0.2)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path):
    with pytest.raises(DownloadError, match="no connection"):
        fetch("http://127.0.0.1:1/file", tmp_path / "file.bin", md5=MD5)
    with pytest.raises(DownloadError, match="no connection"):
        fetch("http://no.such.host.invalid/file", tmp_path / "file.bin", md5=MD5)


def test_a_failed_download_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(DownloadError, match="no connection"):
        install("http://127.0.0.1:1/a.tar", tmp_path / "kept" / "data" / "own", "inside", md5="0" * 32)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_an_archive_is_unpacked_beside_what_is_there(tmp_path):
    """Labels that are put into place by hand come first for some data sets."""
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("VOC/JPEGImages/1.jpg", "VOC/Labels/1.png", "VOC/Labels/2.png"):
            content = tmp_path / "content"
            content.write_text(f"theirs: {name}")
            tar.add(content, name)
    root = tmp_path / "data"
    (root / "VOC" / "Labels").mkdir(parents=True)
    (root / "VOC" / "Labels" / "1.png").write_text("mine")
    install(archive.as_uri(), root, "VOC", md5=hashlib.md5(archive.read_bytes()).hexdigest())
    found = {path.relative_to(root / "VOC").as_posix(): path.read_text() for path in root.rglob("*.*g")}
    theirs = {name: f"theirs: VOC/{name}" for name in ("JPEGImages/1.jpg", "Labels/2.png")}
    assert found == {"Labels/1.png": "mine", **theirs}
    assert [path.name for path in root.iterdir()] == ["VOC"]
