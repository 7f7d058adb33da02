"""A live page of what a run logs while it trains: TensorBoard on the run directory, for this machine alone."""

import socket
import threading
from pathlib import Path

from sft_recipes.errors import InputError
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import say

HOST = "127.0.0.1"
FOLDER = "tensorboard"


def watch(name: str | None, port: int) -> None:
    """Serve the page until Ctrl-C."""
    say("watching", f"{serve(name, port)} until Ctrl-C; the page reads anew what is written")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("watching", "ended; a training goes on as it was")


def serve(name: str | None, port: int) -> str:
    """Serve the page in a thread of this process, and give its address.

    Args:
        name: The run; all of runs/ without it.
        port: 0 for any that is free.

    Raises:
        InputError: The run writes nothing for TensorBoard, or the port is taken.
    """
    directory = folder(name)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"{HOST}:{port} cannot be used ({error.strerror}); name another PORT=") from None
        port = probe.getsockname()[1]
    from tensorboard import program

    server = program.TensorBoard()
    # Its other loader is a program of its own that it unpacks and starts.
    server.configure(argv=[None, f"--logdir={directory}", f"--host={HOST}", f"--port={port}", "--load_fast=false"])
    return str(server.launch())


def folder(name: str | None) -> Path:
    """The directory that TensorBoard reads.

    Raises:
        InputError: The run does not exist, or writes nothing for TensorBoard.
    """
    if name is None:
        if not any(RUNS.glob(f"*/{FOLDER}")):
            train = "make train RECIPE=demo SET=report_to=tensorboard"
            raise InputError(f"no run in {RUNS}/ writes for TensorBoard; train one with: {train}")
        return RUNS
    run = Run.open(name)
    directory = run.directory / FOLDER
    if not directory.is_dir():
        named = run.values().get("report_to") or "none"
        trackers = named if isinstance(named, list) else [named]
        if "tensorboard" in trackers:
            raise InputError(f"{run.directory} has logged nothing yet; try again when it has taken its first steps")
        raise InputError(
            f"{run.directory} writes nothing for TensorBoard: report_to is {', '.join(trackers)}; train with: "
            f"make train RECIPE={run.facts()['recipe']} SET=report_to=tensorboard"
        )
    return directory
