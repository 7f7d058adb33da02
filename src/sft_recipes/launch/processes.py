"""The training processes of a run, from outside: started, watched, asked to stop, and waited for to the last one.

A stop is asked for by a file in the run's directory, which all processes look for after each step, and never by a
signal to accelerate or torchrun, which would end the processes before they have saved. They are started with these
signals blocked, so that a signal to everybody at once (a scheduler's, a container's) stops nobody on the way; the
training processes take them when they are ready to.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sft_recipes.children import Spare
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import refuse
from sft_recipes.recipes import arguments, topology
from sft_recipes.runs import identity, lock
from sft_recipes.runs.run import Run
from sft_recipes.terminal import is_file, say

# SIGUSR1 is what a scheduler may be told to send before it ends a job (sbatch --signal).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LOOK = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds for which one process of several may be stopped (SIGSTOP) before all are ended."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of the machines of a run this is, and where they meet: the launcher's arguments, which no config holds."""

    machines: int = 1
    machine: int = 0
    host: str = ""  # of machine 0, as the others reach it
    port: int = 0


ALONE = Place()


def place(machines: int, machine: int, head: str | None) -> Place:
    """The place that a command line names.

    Raises:
        InputError: There is no such machine, or nothing says where the machines meet.
    """
    if machines == 1 and not machine:
        return ALONE
    problems = []
    if machine >= machines:
        problems.append(f"MACHINE={machine}: {machines} machines are 0 to {machines - 1}")
    host, _, port = (head or "").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        said = f"HEAD={head} is no HOST:PORT" if head else f"MACHINES={machines} meet nowhere"
        problems.append(f"{said}; write where the others reach machine 0, such as HEAD=node1:29500")
    refuse(problems)
    return Place(machines, machine, host, int(port))


class Processes:
    """The processes of one launch of a run that this process holds, on this machine."""

    def __init__(self, run: Run, place: Place = ALONE) -> None:
        self.run = run
        self.place = place
        self.asked = 0
        """How often somebody has asked for a stop: once it saves, and once more it ends at once."""
        self._process: subprocess.Popen | None = None
        self._killed = False
        self._ended = threading.Event()

    def work(self, meanwhile: Callable[[], object] | None = None) -> int:
        """Start them and wait for the last one to end; gives the exit code of the process that was started.

        Args:
            meanwhile: What this process can do while they import their libraries, each on one core.

        Raises:
            OSError: They cannot be started.
        """
        here = self.place.machine
        if not here:
            self.run.stop.unlink(missing_ok=True)
        watch = threading.Thread(target=self._watch, daemon=True)
        with signals_taken(self._ask):
            with _blocked():
                self._process = process = self._started()
            watch.start()
            try:
                if meanwhile:
                    meanwhile()
                for line in process.stdout or ():
                    print(line, end="", flush=True)
                process.wait()
                if not lock.alone(self.run.directory, here):
                    say("stopping", "accelerate was killed; the training processes save a checkpoint and end")
                    self.run.stop.touch()
                while not lock.alone(self.run.directory, here):
                    time.sleep(LOOK)
            finally:
                self._ended.set()
                watch.join()
                if not here:
                    self.run.stop.unlink(missing_ok=True)
        if self._killed:
            return process.returncode
        one = self.run.facts()["topology"]["backend"] == "single"
        return self.run.killed(process.returncode, "the training process" if one else "accelerate")

    def _started(self) -> subprocess.Popen:
        words, variables = command(self.run, self.place), environment(self.run, self.place)
        if not leaves_spare(self.run.facts()):
            return subprocess.Popen(words, env=variables, start_new_session=True, **output_streams())
        with Spare.offered(self.run.directory) as given:
            given["env"] = variables | given["env"]
            return subprocess.Popen(words, start_new_session=True, **given, **output_streams())

    def _ask(self, number: int, frame: object) -> None:
        # A terminal that closes hangs up more than once.
        if not self.asked or number != signal.SIGHUP:
            self.asked += 1
        self.run.stop.touch()

    def _watch(self) -> None:
        """Say that a stop is under way, end everything when asked again, and do not wait for a stopped process."""
        told, stopped = False, 0.0
        while not self._ended.wait(LOOK):
            if self.asked and not told:
                told = True
                print(flush=True)
                say("stopping", "the run saves a checkpoint at the end of this step; once more to stop at once")
            if self.asked > 1:
                self._kill()
            processes = lock.ranks(self.run.directory, self.place.machine)
            asleep = [pid for pid in processes if _is_stopped(pid)]
            # Counted here, so that a time in which this process was stopped too does not count.
            stopped = stopped + LOOK if asleep and len(processes) > 1 else 0.0
            if stopped > PATIENCE:
                reason = f"process {asleep[0]} was stopped (SIGSTOP) for {PATIENCE:.0f} s and the others waited for it"
                self.run.fail(f"{reason}; all were ended", cause=True)
                self._kill()
                return

    def _kill(self) -> None:
        """End all at once. torchrun puts its workers into sessions of their own, where no signal to a group comes."""
        import psutil

        self._killed = True
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self._process.pid) if self._process else None
            for each in [launcher, *launcher.children(recursive=True)] if launcher else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        for pid in lock.ranks(self.run.directory, self.place.machine):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def leaves_spare(facts: Mapping[str, Any]) -> bool:
    """Whether the process of a run leaves a copy of itself for the evaluation that follows: one, without any GPU."""
    place, judged = facts["topology"], facts["own"].get("task") is not None and not facts.get("rehearsal")
    return judged and place["backend"] == "single" and place["use_cpu"] and not topology.visible_gpus()


def _is_stopped(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


@contextlib.contextmanager
def signals_taken(ask: Callable[[int, Any], None]) -> Iterator[None]:
    """Have the signals that ask for a stop handled by a function."""
    # Python lets no other thread handle signals, and nohup wants SIGHUP to be ignored.
    main = threading.current_thread() is threading.main_thread()
    without_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    taken = [each for each in SIGNALS if main and not (each == signal.SIGHUP and without_terminal)]
    before = {number: signal.signal(number, ask) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Signals wait, here and in what is started meanwhile, which inherits it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def output_streams() -> dict[str, Any]:
    """Where a child process writes: where this one does, or, if that is no file, to us who pass it on."""
    if is_file(sys.stdout):
        return {"stdout": sys.stdout}
    return {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}


def command(run: Run, place: Place = ALONE) -> list[str]:
    """The `accelerate launch` of a run that is held, as an argument list; where one process trains, it is that one."""
    launcher = [sys.executable, "-m", "sft_recipes.train.accelerate_launch", "--config_file", str(run.accelerate)]
    if place.machines > 1:
        launcher += ["--num_machines", str(place.machines), "--machine_rank", str(place.machine), "--same_network"]
        launcher += ["--main_process_ip", place.host, "--main_process_port", str(place.port)]
        # torchrun here too, as without DeepSpeed: its own launcher would log in on the other machines.
        launcher += ["--deepspeed_multinode_launcher", "standard"]
    elif run.facts()["topology"]["backend"] != "single":
        # A free port, so that two runs on the GPUs of one machine do not meet.
        launcher += ["--main_process_port", "0"]
    launch = lock.launch_name(run.directory, place.machine)
    return [*launcher, "-m", "sft_recipes.train.process", str(run.directory), launch]


def environment(run: Run, place: Place = ALONE) -> dict[str, str]:
    """The environment of the training processes: nothing phones home or chatters, and one process sees one GPU."""
    chosen = identity.launched_with(run, run.facts())
    one_gpu, compiles = chosen.backend == "single", arguments.compiles(run.values())
    variables = quiet_environment(on_cpu=chosen.use_cpu, one_gpu=one_gpu, compiles=compiles)
    variables["TENSORBOARD_LOGGING_DIR"] = str(run.directory / "tensorboard")
    if chosen.computes_on_cpu:
        # Each process takes its share of the cores; torchrun's own default is one.
        here = chosen.processes // place.machines
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
        if run.facts()["own"].get("execution") == "auto":
            # Threads that spin while they wait for others take cores from whoever has work.
            variables.setdefault("OMP_WAIT_POLICY", "passive")
    elif chosen.backend == "single":
        # As accelerate has it, but before torch is there to read it.
        variables.setdefault("OMP_NUM_THREADS", "1")
    return variables
