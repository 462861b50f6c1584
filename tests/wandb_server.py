"""A server on loopback that answers what wandb's own client asks while it records runs and runs an agent.

It knows a single user ("me") and keeps everything in memory. What it does not know it answers with null, as a server
of an older version does.
"""

import gzip
import json
import re
from base64 import b64encode
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

KEY = "a" * 40  # any key of this form is good
SWEEP = "swp00001"


class WandbServer:
    """Context: it answers at `address` until the end, or until `cut`.

    Attributes:
        runs: the latest facts of each run, by its id.
        rows: each run's history.
        artifacts: what each artifact was created with, and its state, by name.
        used: names of the artifacts that runs have taken as inputs.
        files: content of the uploads, by "run or artifact/file".
        commands: what an agent is told at its next heartbeats.
        sweep: the configuration of the sweep.
        asked: names of all operations, in order.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.used: list[str] = []
        self.files: dict[str, bytes] = {}
        self.commands: list[dict[str, Any]] = []
        self.sweep = ""
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead wandb's client here."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}

    @property
    def address(self) -> str:
        return "http://{}:{}".format(*self._server.server_address[:2])

    def break_down(self) -> None:
        """Answer 500 from now on."""
        self._server.broken = True

    def cut(self) -> None:
        """Stop answering, as a server does that goes down."""
        self._server.down = True
        self._server.shutdown()
        self._server.server_close()

    def operation(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that answer one of GraphQL's operations; an artifact's id is its name."""
        self.asked.append(name)
        project = {"id": "project", "internalId": "1", "name": variables.get("project"), "entity": {"name": "me"}}
        match name:
            case "Viewer":
                return {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus":
                return {"model": {**project, "bucket": None}}
            case "UpsertBucket":
                run = self.runs.setdefault(variables["name"], {})
                run |= {key: value for key, value in variables.items() if value is not None}
                bucket = {"id": variables["name"], "name": variables["name"], "displayName": run.get("displayName")}
                bucket |= {"config": run.get("config"), "sweepName": run.get("sweep"), "historyLineCount": 0}
                return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
            case "CreateRunFiles":
                files = [self._file(variables["run"], file) for file in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                given = variables["input"]
                name = given["artifactCollectionName"]
                self.artifacts[name] = {**given, "state": "PENDING"}
                made = {"id": name, "digest": given["digest"], "state": "PENDING", "aliases": []}
                return {"createArtifact": {"artifact": {**made, "artifactSequence": {"id": name}}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                owner = variables.get("artifactID") or variables["artifactManifestID"]
                manifest = {"id": owner, "file": self._file(owner, "wandb_manifest.json")}
                return {name[0].lower() + name[1:]: {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                files = [self._file(file["artifactID"], file["name"]) for file in variables["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}
            case "CommitArtifact":
                name = variables["artifactID"]
                self.artifacts[name]["state"] = "COMMITTED"
                return {"commitArtifact": {"artifact": {"id": name, "digest": self.artifacts[name]["digest"]}}}
            case "ClientIDMapping":
                return {"clientIDMapping": {"serverID": b64encode(variables["clientID"].encode()).decode()}}
            case "ArtifactByID":
                return {"artifact": self._artifact(variables["id"])}
            case "UseArtifact":
                self.used.append(variables["input"]["artifactID"])
                return {"useArtifact": {"artifact": self._artifact(self.used[-1])}}
            case "UpsertSweep":
                self.sweep = variables["config"]
                return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
            case "SweepWithRuns":
                return {"project": {"sweep": {"id": SWEEP, "config": self.sweep, "runs": {"edges": []}}}}
            case "GetSweepState":
                return {"project": {"sweep": {"state": "RUNNING"}}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "agent"}}}
            case "Heartbeat":
                commands = [self.commands.pop(0)] if self.commands else []
                return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {}

    def _file(self, owner: str, name: str) -> dict[str, Any]:
        """Where a file of a run or an artifact is to be uploaded."""
        place = {"uploadUrl": f"{self.address}/upload/{owner}/{name}", "uploadHeaders": [], "uploadMultipartUrls": None}
        return {"id": name, "name": name, "displayName": name, "storagePath": name, "artifact": {"id": owner}, **place}

    def _artifact(self, name: str) -> dict[str, Any]:
        known = self.artifacts[name]
        facts = {"id": name, "versionIndex": 0, "artifactType": {"name": known["artifactTypeName"]}, "description": ""}
        facts |= {"metadata": known.get("metadata"), "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": []}
        facts |= {"historyStep": None, "state": known["state"], "size": 0, "digest": known["digest"], "fileCount": 0}
        facts |= {"commitHash": None, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": []}
        project = {"id": "project", "internalId": "1", "name": "danet", "entity": {"name": "me"}}
        return {**facts, "artifactSequence": {"name": name, "project": project}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: WandbServer
    broken = False
    down = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that the client drops are not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.server.owner.files[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        asked = json.loads(self._body())
        if self.path == "/graphql":
            text = asked["query"]
            name = asked.get("operationName") or (re.search(r"(?:query|mutation)\s+(\w+)", text) or ["", ""])[1]
            self._answer({"data": self.server.owner.operation(name, asked.get("variables") or {})})
            return
        run = self.path.split("/")[-2]
        for line in asked.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.server.owner.rows[run].append(json.loads(line))
        self._answer({"limits": {}})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, data: dict[str, Any]) -> None:
        if self.server.down:
            self.close_connection = True
            return
        body = json.dumps(data).encode()
        self.send_response(500 if self.server.broken else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
