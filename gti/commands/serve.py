"""A page and an API for one network, for many clients (docs/serve.md):

    gti serve nets/2801_digits_full.model                  # http://127.0.0.1:8080
    gti serve nets/2801_edges.model --host 0.0.0.0 --token_file token.txt

The page takes pictures and shows what the network says. Programs POST them to /api/classify or /api/edges, or to the
paths of DeepStack; /health and /metrics are for monitors. Ctrl-C or SIGTERM answers what is in work and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
from collections.abc import Sequence

from gti import files
from gti.commands import flags
from gti.errors import UsageError, install

_NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart", "PIL": "pillow"}
_TOKEN_VARIABLE = "GTI_TOKEN"
_END_S = 10  # for requests in work when the server is told to end


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("serve", __doc__)
    result.add_argument("model", type=flags.model_file, help="full .MODEL, or one for edges")
    where = result.add_argument_group("network")
    where.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this computer)")
    where.add_argument("--port", type=int, default=8080, help="default: 8080")
    where.add_argument(
        "--token", help=f"ask every client for it; better in {_TOKEN_VARIABLE}, as command lines are no secret"
    )
    where.add_argument("--token_file", metavar="FILE", help="the token's file, its first line")
    where.add_argument("--max_mb", type=float, default=10.0, help="largest picture file in MB (default: 10)")
    where.add_argument("--queue", type=int, default=64, help="requests in work; more get 503 (default: 64)")
    flags.add_device(result, more="; several sticks as a list with commas")
    return result


def token(args: argparse.Namespace) -> str:
    """Return what clients have to know, "" for nothing. Raises UsageError, FormatError."""
    if args.token_file is not None:
        text = files.read_bytes(args.token_file, limit=4096).decode("utf-8", "replace").partition("\n")[0].strip()
    else:
        text = os.environ.get(_TOKEN_VARIABLE, "") if args.token is None else args.token
    if (args.token_file is not None or args.token is not None) and not text:
        raise UsageError("--token", "is empty", expected="a word that nobody guesses")
    return text


def is_loopback(host: str) -> bool:
    """Return whether only this computer can reach `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and serve."""
    args = parser().parse_args(words)
    flags.at_least_one("--queue", args.queue, "takes no pictures")
    if not 0 < args.max_mb <= 256 or not 0 <= args.port <= 65535:
        raise UsageError(
            "gti serve",
            "cannot do that",
            expected="--max_mb above 0 and at most 256, --port 0..65535",
            received=f"--max_mb {args.max_mb:g} --port {args.port}",
        )
    secret = token(args)
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError("gti serve", f"needs {', '.join(missing)}", fix=install("serve"))
    if args.record is not None:
        raise UsageError("--record", "would grow without end", fix="record with gti classify")
    if not secret and not is_loopback(args.host):
        flags.note(f"note: everybody who reaches {args.host} may ask; --token_file limits that")
    return _serve(args, secret)


def _serve(args: argparse.Namespace, secret: str) -> int:
    import uvicorn

    from gti.serve.app import Limits, Server
    from gti.serve.models import open_model

    model = open_model(args.model, flags.devices(args.device), flags.settings(args))
    try:
        for description in model.devices:
            flags.note(description)
        server = Server(model, Limits(args.queue, int(args.max_mb * 1e6), secret))
        config = uvicorn.Config(
            server.app(),
            host=args.host,
            port=args.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_END_S,
            server_header=False,
        )
        running = uvicorn.Server(config)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        flags.note(f"{model.name} at http://{shown}:{args.port}/ (Ctrl-C ends)")
        try:
            running.run()
        except SystemExit as problem:
            raise UsageError(
                f"--host {args.host} --port {args.port}",
                "cannot be listened at",
                fix="choose another --port, or end the program that has it",
            ) from problem
    finally:
        model.release()
    return 0
