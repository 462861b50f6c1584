"""Whether a server can be reached at all, where a client library would try for minutes."""

import socket
import threading
import urllib.parse
import urllib.request

PROBE = 3.0  # seconds for connecting


def require(url: str) -> None:
    """Raises OSError if nothing accepts a connection at the URL's host and port within PROBE seconds.

    Behind a proxy nothing is tried: only the client library knows the way.
    """
    if urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(url)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    problems = [f"{host}:{port} does not answer within {PROBE:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PROBE).close()
            problems.clear()
        except OSError as error:
            problems[:] = [f"{host}:{port}: {error}"]

    probe = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit of its own
    probe.start()
    probe.join(PROBE)
    if problems:
        raise OSError(problems[0])
