"""The command that starts the dashboard."""

import os
import socket
import subprocess
import sys
from typing import Annotated

import typer

from ...store_url import DEFAULT_STORE, STORE_VARIABLE
from .. import options


def dashboard(
    store: options.Store = DEFAULT_STORE,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
) -> None:
    """Start the dashboard: read-only, reachable from this machine only unless --host is given."""
    from importlib.resources import files

    from ..resolve import open_existing

    open_existing(store).close()
    _check_address(host, port)
    script = files("archfront.dashboard").joinpath("app.py")
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += ["--server.port", str(port), "--server.address", host]
    if host not in ("127.0.0.1", "localhost", "::1"):
        command += ["--server.allowedHosts", host]
    print(f"dashboard: http://{host}:{port}  (Ctrl-C stops it)", file=sys.stderr)
    # The URL may hold a password: the environment is private, arguments are not.
    environment = {**os.environ, STORE_VARIABLE: store}
    try:
        ended = subprocess.run(command, env=environment, check=False)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    raise typer.Exit(ended.returncode)


def _check_address(host: str, port: int) -> None:
    """Raise InputError where nothing can listen on the address."""
    from ....search_space.document import InputError

    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}") from None
