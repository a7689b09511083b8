"""Several machines: what each prepares, what they compare, how all of them end where one fails.

Machines are stood for by torchrun's number of them (GROUP_RANK), with working folders, caches and stores of their own.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eco_fast
from eco_fast.cli import main
from eco_fast.data.make_store import prepare
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights
from eco_fast.train import inputs
from eco_fast.train import launch as launcher
from eco_fast.train import world as module
from eco_fast.train.peers import say_who_prepares
from eco_fast.train.run_folder import Checkpoints
from eco_fast.train.world import World, join_world
from tests.conftest import make_image

ROOT = Path(__file__).parents[2]
OPTIONS = {"blocks": 1, "channels": 4}
SETTINGS = ("student.options={blocks=1, channels=4}", "data.patch=12", "data.batch=4", "run.threads=1")
TRAIN = ["train", "edsr-tiny", "--mode", "vanilla", *(word for setting in SETTINGS for word in ("--set", setting))]
_LIMIT = 60  # seconds in which processes that fail have to be gone


class Ended(NamedTuple):
    """How a process ended, and what it said."""

    code: int
    out: str
    error: str


def images(folder: Path, count: int = 4, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(make_image(64, 60 + 4 * i, seed + i)).save(folder / f"image{i}.png")
    return folder


def network(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_weights(path, build("edsr-tiny", 2, **OPTIONS).state_dict(), identity("edsr-tiny", OPTIONS, 2))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


# --- by torchrun


def agents(folder: Path, *arguments: object, shared_cache: bool = False) -> list[Ended]:
    """Two agents of torchrun, one process each; `--local-addr` has the first one be machine 0, as names of hosts do."""
    port, started = free_port(), []
    for node in range(2):
        here = folder / f"node{node}"
        here.mkdir(parents=True, exist_ok=True)
        command = ["--nnodes", "2", "--node-rank", str(node), "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", f"127.0.0.{node + 1}"]
        cache = str((folder if shared_cache else here) / "cache")
        started.append(torchrun(here, [*command, "--nproc-per-node", "1"], arguments, cache))
    return [ended(process) for process in started]


def torchrun(folder: Path, options: list[str], arguments: tuple[object, ...], cache: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "eco_fast", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(XDG_CACHE_HOME=cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> Ended:
    try:
        out, error = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun takes its processes with it
        out, error = process.communicate(timeout=30)
        pytest.fail(f"no end was found: {out[-500:]} {error[-500:]}")
    return Ended(process.returncode, out, error)


def weights(run: Path) -> Mapping[str, torch.Tensor]:
    """Of the last checkpoint: the network, its average, and the optimiser's state."""
    last = run / "checkpoints" / "step-00000008"
    state = torch.load(last / "state.pt", weights_only=True)["learners"]["student"]["optimizer"]["state"]
    moments = {f"{i}.{name}": value for i, of in state.items() for name, value in of.items()}
    average = {f"average {name}": value for name, value in load_file(last / "ema.safetensors").items()}
    return {**load_file(last / "weights.safetensors"), **average, **moments}


def assert_same_bits(ours: Path, theirs: Path) -> None:
    left, right = weights(ours), weights(theirs)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_two_agents_give_the_bits_of_one_with_two_processes(tmp_path: Path) -> None:
    """Also after a resume, of a run whose folder and recipe the second machine does not have."""
    photos = images(tmp_path / "photos")
    arguments = [*TRAIN, "--train", photos, "--valid", photos, "--steps", 8]
    arguments += ["--set", "run.checkpoint_every=4", "--set", "run.valid_every=8"]
    (tmp_path / "one").mkdir()
    one = ended(
        torchrun(tmp_path / "one", ["--standalone", "--nproc-per-node", "2"], (*arguments, "--out", "run"), "cache")
    )
    assert one.code == 0, one.error
    two = agents(tmp_path / "two", *arguments, "--out", "run")
    assert [end.code for end in two] == [0, 0], two
    assert "2 machines; each prepares its own store" in two[0].out
    first, second = tmp_path / "two" / "node0", tmp_path / "two" / "node1"
    assert all(list(node.glob("cache/eco-fast/*/index.json")) for node in (first, second))
    assert [path.name for path in second.iterdir()] == ["cache"]
    assert_same_bits(first / "run", tmp_path / "one" / "run")
    # Back to step 4, on a store that both share.
    copy = shutil.copytree(first / "run", tmp_path / "again" / "node0" / "run", symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "step-00000008")
    again = agents(tmp_path / "again", "train", "run/config.toml", "--resume", shared_cache=True)
    assert [end.code for end in again] == [0, 0], again
    assert "2 machines share the store in" in again[0].out
    assert "resuming run/checkpoints/step-00000004" in again[0].out
    assert not list((tmp_path / "again" / "node1").iterdir())
    assert_same_bits(copy, first / "run")


@pytest.mark.slow
def test_two_agents_end_where_the_first_cannot_write(tmp_path: Path) -> None:
    photos = images(tmp_path / "photos")
    (tmp_path / "node0" / "run").mkdir(parents=True)
    (tmp_path / "node0" / "run" / "something").touch()
    before = time.monotonic()
    ends = agents(tmp_path, *TRAIN, "--train", photos, "--steps", 2, "--out", "run")
    assert time.monotonic() - before < _LIMIT
    assert all(end.code != 0 and "(node 0): run holds other files (something); start" in end.error for end in ends), (
        ends
    )


@pytest.mark.slow
def test_processes_of_one_machine_fail_with_one_line(tmp_path: Path) -> None:
    """torchrun would add a report of 40 lines; an own launcher does not."""
    command = [sys.executable, "-m", "eco_fast", *TRAIN, "--processes", "2", "--train", "nowhere", "--out", "run"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=_LIMIT)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: nowhere does not exist")
    assert not (tmp_path / "run").exists()


def test_the_launcher_is_quiet_and_patient(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A run that is stopped validates and saves first, which may take longer than torchrun waits."""
    seen = []
    monkeypatch.setattr(launcher, "elastic_launch", lambda config, command: lambda *rest: seen.append((config, rest)))
    for name in ("OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    assert launcher.launch(2, ["train", "a.toml"]) == 0
    ((config, rest),) = seen
    assert (config.nproc_per_node, config.shutdown_timeout, os.environ["OMP_NUM_THREADS"]) == (2, 600, "1")
    assert rest[-3:] == ("eco_fast", "train", "a.toml")
    assert capfd.readouterr() == ("", "")


# --- without torchrun: one program that is forked, since most of the time above goes into starting


def scenarios(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By name, for each process: its machine, what it is told to do, and what is wrong with it."""
    given = folder / "given"
    photos, fewer = images(given / "photos"), images(given / "fewer", 3)
    others = images(given / "others", seed=9)  # of the same names and sizes
    stores = [given / "photos-store", given / "others-store"]
    for source, store in zip((photos, others), stores, strict=True):
        prepare([source], [2], store)
    teachers = [network(given / f"teacher{seed}.safetensors", seed) for seed in range(2)]
    plain = [*TRAIN, "--steps", 2, "--out", "run", "--train", photos]
    from_store = [*plain[:-1], stores[0]]

    def two(
        *second: object, first: list[object] = plain, instead: Path | None = None, **wrong: object
    ) -> list[dict[str, Any]]:
        """One process on each of two machines; the second one has more arguments, or a last one of its own."""
        own = [*first, *second] if instead is None else [*first[:-1], instead]
        return [{"node": 0, "arguments": first}, {"node": 1, "arguments": own, **wrong}]

    def four(arguments: list[object], **more: object) -> list[dict[str, Any]]:
        return [{"node": node, "arguments": arguments, **more} for node in (0, 0, 1, 1)]

    occupied = folder / "occupied" / "node0" / "run"
    occupied.mkdir(parents=True)
    (occupied / "something").touch()
    damaged = folder / "damaged" / "node0" / "run" / "checkpoints" / "step-00000001"
    damaged.mkdir(parents=True)
    (damaged / "state.pt").write_bytes(b"nothing")
    eco = [*plain, "--mode", "eco", "--teacher", teachers[0]]
    return {
        "apart": four(eco),
        "shared": four(plain, cache=str(folder / "one-cache")),
        "missing": two(instead=given / "nowhere"),
        "fewer": two(instead=fewer),
        "pixels": two(instead=stores[1], first=from_store),
        "kind": two(instead=stores[0]),
        "valid": two(instead=others, first=[*plain, "--valid", photos]),
        "teacher": two("--teacher", teachers[1], first=eco),
        "init": two("--init", teachers[1], first=[*plain, "--init", teachers[0]]),
        "setting": two("--set", "optim.lr=0.5"),
        "slip": two("--set", "optim.lrr=0.5"),
        "version": two(version="0.0.9"),
        "bug": two(bug=True),
        "occupied": two(),
        "damaged": two("--resume", first=[*plain, "--resume"]),
        "unsaved": [{**process, "full": True} for process in two()],
    }


FAULTS = {
    "missing": r"\(node 1\): .*nowhere does not exist",
    "fewer": r"\(node 1\) differs from .*\(node 0\) in the number of training images: 3, not 4; give all machines",
    "pixels": r"\(node 1\) differs from .*\(node 0\) in the pixels of training images: ",
    "kind": r"\(node 1\) differs from .* in the kind of training images: a prepared store, not files",
    "valid": r"\(node 1\) differs from .* in the pixels of validation images: ",
    "teacher": r"\(node 1\) differs from .* in the weights of the teacher: ",
    "init": r"\(node 1\) differs from .* in the file of student.init: ",
    "setting": r"\(node 1\): other settings than those of the first process: optim.lr \(0.5 here, 0.001 there\)",
    "slip": r"\(node 1\): --set optim.lrr=0.5: there is no key optim.lrr; did you mean optim.lr\?",
    "version": r"\(node 1\) differs from .* in eco-fast: 0.0.9, not ",
    "bug": r"\(node 1\): ZeroDivisionError: a bug",
    "occupied": r"\(node 0\): run holds other files \(something\)",
    "damaged": r"\(node 0\): .*state.pt is damaged",
    "unsaved": r"\(node 0\): the disk is full",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Ended]]]:
    """What came of every scenario, and the folder they were in."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "scenarios.json").write_text(json.dumps(scenarios(folder), default=str))
    subprocess.run([sys.executable, __file__, folder], env=environment(), check=True, timeout=300)
    ends = json.loads((folder / "ends.json").read_text())
    return folder, {name: [Ended(*end) for end in found] for name, found in ends.items()}


Outcomes = tuple[Path, dict[str, list[Ended]]]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_all_processes(outcomes: Outcomes, name: str) -> None:
    """Soon, with one line on each machine, and a traceback only where a bug is."""
    _, ends = outcomes
    for node, end in enumerate(ends[name]):
        if name == "bug" and node == 1:
            assert "Traceback" in end.error and end.code == 1
            continue
        assert end.code == 2, end
        assert end.error.count("\n") == 1
        assert re.match(rf"error: .*{FAULTS[name]}", end.error), end.error


@pytest.mark.slow
def test_one_process_for_every_folder_prepares(outcomes: Outcomes) -> None:
    folder, ends = outcomes
    lines = {"apart": "2 machines; each prepares its own store\n", "shared": "2 machines share the store in "}
    for name, line in lines.items():
        assert [end.code for end in ends[name]] == [0] * 4, ends[name]
        assert line in ends[name][0].out
        assert f"4 processes on {socket.gethostname()} (node 0), {socket.gethostname()} (node 1)" in ends[name][0].out
        assert not any(end.out for end in ends[name][1:])
        prepared = {path.name for path in (folder / name).glob("prepared-*")}
        assert prepared == ({"prepared-0", "prepared-2"} if name == "apart" else {"prepared-0"})
        assert [path.parent.name for path in (folder / name).glob("node*/run")] == ["node0"]
    assert not list(folder.rglob(".probe-*"))


@pytest.mark.parametrize(
    ("firsts", "line"),
    [
        ([0, 0, 0, 0], "3 machines share the store in store"),
        ([0, 0, 2, 3], "3 machines; each prepares its own store"),
        ([0, 0, 2, 2], "3 machines; the store is prepared on a, b"),
    ],
)
def test_what_is_said_of_stores(firsts: list[int], line: str) -> None:
    assert say_who_prepares(Path("store"), firsts, World(0, 4, ("a", "a", "b", "c"))) == line


def test_the_first_process_of_a_machine() -> None:
    places = ("a", "a", "b", "b")
    assert [World(rank, 4, places).leads_machine for rank in range(4)] == [True, False, True, False]
    assert World(0, 4, places).machines == ["a", "b"]


def test_processes_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**given, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_JOINING", module.timedelta(seconds=1))
    with pytest.raises(UserError, match="not all 2 processes came within 1 seconds"):
        join_world()


def fork(folder: Path, rank: int, process: dict[str, Any], common: dict[str, str]) -> int:
    """Start one process of a scenario; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        here = folder / f"node{process['node']}"
        here.mkdir(parents=True, exist_ok=True)
        os.chdir(here)
        os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank % 2), GROUP_RANK=str(process["node"]))
        os.environ["XDG_CACHE_HOME"] = process.get("cache", str(here / "cache"))
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
        spoil(folder, rank, process)
        main(process["arguments"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def spoil(folder: Path, rank: int, process: dict[str, Any]) -> None:
    """Note which processes prepare; do wrong what is to go wrong."""

    def noted(*arguments: Any, **more: Any) -> None:
        (folder / f"prepared-{rank}").touch()
        if process.get("bug"):
            raise ZeroDivisionError("a bug")
        prepare(*arguments, **more)

    def full(*arguments: Any, **more: Any) -> None:
        raise UserError("the disk is full")

    inputs.prepare = noted
    eco_fast.__version__ = process.get("version", eco_fast.__version__)
    if process.get("full"):
        Checkpoints.save = full  # type: ignore[assignment]


def run_all(folder: Path) -> None:
    """Every scenario, one after the other; `ends.json` says what came of it."""
    ends = {}
    for name, processes in json.loads((folder / "scenarios.json").read_text()).items():
        common = {"WORLD_SIZE": str(len(processes)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        (folder / name).mkdir(exist_ok=True)
        children = [fork(folder / name, rank, process, common) for rank, process in enumerate(processes)]
        deadline, codes = time.monotonic() + _LIMIT, []
        for child in children:
            while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
                time.sleep(0.01)
            if not done[0]:
                os.kill(child, signal.SIGKILL)
                done = os.waitpid(child, 0)
            codes.append(os.waitstatus_to_exitcode(done[1]))
        files = [[folder / name / f"{what}-{rank}" for what in ("out", "error")] for rank in range(len(codes))]
        ends[name] = [[code, *(file.read_text() for file in pair)] for code, pair in zip(codes, files, strict=True)]
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    import eco_fast.train.start  # once, for all that are forked

    run_all(Path(sys.argv[1]))
