"""A small emulator of Google's object store: the JSON API, on a port of this machine.

It knows as much as gcsfs, TensorStore and google-cloud-storage ask for: uploads in one
request, in parts and as a session, ranges, listings, copies, deletions, one by one and
in batches, and conditions on the generation of an object.
"""

import contextlib
import email
import http.server
import itertools
import json
import re
import threading
import time
import urllib.parse
from typing import NamedTuple


class Object(NamedTuple):
    """An object: its bytes, and the number of the write that made it."""

    data: bytes
    generation: int


class Refused(Exception):
    """A status other than success."""


class Store:
    """The objects of all buckets."""

    def __init__(self):
        self.objects, self._lock = {}, threading.RLock()
        self.sessions = {}
        # No number comes again, in another run neither.
        self._numbers = itertools.count(time.time_ns() // 1000)

    def put(self, key, data, query):
        """Writes an object, if what the query demands of the one before holds."""
        with self._lock:
            self._check(key, query)
            self.objects[key] = Object(bytes(data), next(self._numbers))
        return self.describe(key)

    def delete(self, key, query):
        """Removes an object."""
        with self._lock:
            self._check(key, query)
            if self.objects.pop(key, None) is None:
                raise Refused(404)

    def _check(self, key, query):
        there = self.objects[key].generation if key in self.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != there:
            raise Refused(412)

    def get(self, key, query):
        """An object, if what the query demands of it holds."""
        found = self.objects.get(key)
        if found is None:
            raise Refused(404)
        self._check(key, query)
        if query.get("ifGenerationNotMatch") == str(found.generation):
            raise Refused(304)
        return found

    def describe(self, key):
        """What is said of an object."""
        data, generation = self.objects[key]
        bucket, name = key
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "etag": str(generation),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, bucket, query):
        """Objects and, up to a delimiter, folders whose names begin with a prefix."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for key in sorted(self.objects):
            if key[0] != bucket or not key[1].startswith(prefix):
                continue
            if key[1] < query.get("startOffset", ""):
                continue
            if "endOffset" in query and key[1] >= query["endOffset"]:
                continue
            rest = key[1][len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


def _parts(body, kind):
    """The parts of a body of several."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    return email.message_from_bytes(head + body).get_payload()


def _multipart(body, kind):
    """(name, data) of an upload in two parts; data is bytes, which email changes."""
    mark = re.search(r'boundary="?([^";]+)', kind)[1].encode()
    _, first, second, *_ = re.split(rb"(?:^|\r?\n)--" + re.escape(mark), body)
    bodies = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (first, second))
    about, data = bodies
    return json.loads(about)["name"], data


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def _answer(self, status, body=b"", **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route(address.path, query, body)
        except Refused as refused:
            status = refused.args[0]
            # This one has no body.
            self._answer(status, b"" if status == 304 else {"error": {"code": status}})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _route(self, path, query, body):
        store = self.server.store
        if path.startswith("/batch"):
            return self._batch(body)
        if path.startswith("/upload"):
            bucket = path.split("/b/", 1)[1].split("/")[0]
            return self._upload(bucket, query, body)
        bucket, *rest = path.split("/b/", 1)[1].split("/", 2)
        names = [urllib.parse.unquote(part) for part in rest[1:]]
        if bucket != "bucket":
            raise Refused(404)
        if not rest:
            about = {"kind": "storage#bucket", "name": bucket, "id": bucket}
            return self._answer(200, about)
        if not names:
            return self._answer(200, store.list(bucket, query))
        if self.command == "POST":
            source, target = re.split(r"/(?:rewrite|copy)To/b/bucket/o/", names[0])
            data = store.get((bucket, source), {}).data
            found = store.put((bucket, target), data, query)
            done = {"done": True, "resource": found, "kind": "storage#rewriteResponse"}
            return self._answer(200, done if "/rewriteTo/" in path else found)
        key = bucket, names[0]
        if self.command == "DELETE":
            store.delete(key, query)
            return self._answer(204)
        found = store.get(key, query)
        if query.get("alt") != "media":
            return self._answer(200, store.describe(key))
        return self._send(found)

    def _send(self, found):
        marks = {"x_goog_generation": found.generation, "ETag": found.generation}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        size = len(found.data)
        if not wanted or not size:
            return self._answer(200, found.data, **marks)
        first, last = wanted.groups()
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= size:
            raise Refused(416)
        marks["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
        return self._answer(206, found.data[start:end], **marks)

    def _upload(self, bucket, query, body):
        store, kind = self.server.store, self.headers.get("Content-Type", "")
        if "upload_id" in query:
            return self._continue(query["upload_id"], body)
        if query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            number = str(len(store.sessions))
            store.sessions[number] = (bucket, name), query, bytearray()
            host = self.headers["Host"]
            path = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            place = f"http://{host}{path}&upload_id={number}"
            return self._answer(200, {}, Location=place)
        name, data = query.get("name"), body
        if query["uploadType"] == "multipart":
            name, data = _multipart(body, kind)
        return self._answer(200, store.put((bucket, name), data, query))

    def _continue(self, number, body):
        store = self.server.store
        key, query, data = store.sessions[number]
        if self.command == "DELETE":
            return self._answer(499)
        data += body
        total = (self.headers.get("Content-Range") or "/*").rpartition("/")[2]
        if total == "*" and self.headers.get("Content-Range"):
            return self._answer(308, Range=f"bytes=0-{len(data) - 1}")
        if total != "*" and len(data) < int(total):
            return self._answer(308, Range=f"bytes=0-{len(data) - 1}")
        return self._answer(200, store.put(key, data, query))

    def _batch(self, body):
        lines = []
        for part in _parts(body, self.headers["Content-Type"]):
            request = part.get_payload().strip().split("\n")[0].split()
            bucket, name = re.search(r"/b/([^/]+)/o/([^?\s]+)", request[1]).groups()
            try:
                self.server.store.delete((bucket, urllib.parse.unquote(name)), {})
                status = "204 No Content"
            except Refused:
                status = "404 Not Found"
            number = part["Content-ID"].strip("<>")
            lines += [
                "--part",
                "Content-Type: application/http",
                f"Content-ID: <response-{number}>",
                "",
                f"HTTP/1.1 {status}",
                "",
                "",
            ]
        text = "\r\n".join([*lines, "--part--", ""])
        self._answer(200, text.encode(), Content_Type="multipart/mixed; boundary=part")


class _Server(http.server.ThreadingHTTPServer):
    # TensorStore opens some hundred connections at once.
    daemon_threads, request_queue_size = True, 1024

    def handle_error(self, request, client_address):
        """Says nothing of clients that have gone, as killed ones do."""


@contextlib.contextmanager
def serve():
    """Runs the emulator.

    Yields:
      (its Store, variables of the environment that point programs to it).
    """
    server = _Server(("localhost", 0), _Handler)
    server.store = Store()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place = f"http://localhost:{server.server_port}"
    try:
        yield (
            server.store,
            {
                "STORAGE_EMULATOR_HOST": place,
                "TENSORSTORE_GCS_HTTP_URL": place,
                "GOOGLE_CLOUD_PROJECT": "none",
                # Kinds of buckets that an emulator does not have.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
