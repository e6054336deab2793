"""Ray as the engine: the same store, whoever dies; and the traps of such clusters, each shut."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tdsm import open_store
from tdsm.base.errors import ResourceError, UsageError
from tdsm.features import engines, ray_engine
from tdsm.features.config import ExtractConfig
from tdsm.features.ray_engine import connected, count_actors
from tests.features.stores import command, made, same

REASON = "Ray is not installed"
CPUS = 3
ACTOR_KILLS = 20
DRIVER_KILLS = (1, 7, 14, 21, 28)  # at so many files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    made(folder)
    return folder


@pytest.fixture
def place(monkeypatch):
    """A folder for what Ray writes; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield folder


@pytest.fixture(scope="module")
def cluster():
    """A small Ray of this machine, gone afterwards; tests that start their own come before those that share it."""
    ray = pytest.importorskip("ray", reason=REASON)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            _temp_dir=folder,
            num_cpus=CPUS,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        try:
            yield ray
        finally:
            ray.shutdown()


# ---------------------------------------------------------------- without Ray


@pytest.mark.parametrize(("processors", "wanted"), [(2, 2), (8, 8), (8, 99)])
def test_actors_that_would_take_every_processor_are_refused(processors, wanted):
    with pytest.raises(UsageError, match=f"with none left it would wait for ever. Use at most {processors - 1}"):
        count_actors(processors, wanted, units=100)
    assert count_actors(processors, None, units=100) == processors - 1
    assert count_actors(processors, 1, units=100) == 1


def test_a_single_processor_is_refused():
    with pytest.raises(ResourceError, match="expected 2 at least"):
        count_actors(1, None, units=5)


def test_ray_that_is_not_installed_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    words = r'--engine ray: the library ray is not installed. Run: pip install "tdsm\[ray\]"'
    with pytest.raises(ResourceError, match=words), connected(None):
        pass


def test_ray_shares_out_by_itself(tmp_path):
    with pytest.raises(UsageError, match="Start it without torchrun"):
        made(tmp_path / "store", engine="ray", processes=2)


@pytest.mark.parametrize(
    ("address", "variable", "seconds", "name", "words"),
    [
        (None, None, 9e9, "here", "no cluster is named"),
        ("auto", None, 30.0, "here", "about 30 s of work, and starting Ray takes 10 to 40 s"),
        ("auto", None, 6000.0, "ray", "a cluster is named, and here it would take about 100 min"),
        (None, "10.0.0.1:6379", 6000.0, "ray", "a cluster is named"),
    ],
)
def test_auto_says_what_it_took_and_why(monkeypatch, address, variable, seconds, name, words):
    monkeypatch.delenv(engines.RAY_ADDRESS, raising=False)
    if variable:
        monkeypatch.setenv(engines.RAY_ADDRESS, variable)
    chosen = engines.chosen(ExtractConfig(ray_address=address), seconds)
    assert chosen[0] == name
    assert words in chosen[1]
    assert engines.chosen(ExtractConfig(engine="here", ray_address=address), seconds) == ("here", "as asked")


@pytest.mark.parametrize("error", [ConnectionError("no GCS at 10.0.0.1:6379"), Exception("no GCS in time\nmore")])
def test_a_cluster_that_is_not_there_or_does_not_start_is_said_in_one_line(monkeypatch, error):
    ray = pytest.importorskip("ray", reason=REASON)

    def nobody(**options):
        raise error

    monkeypatch.setattr(ray, "init", nobody)
    words = r"cluster cannot be used \(no GCS[^\n]*\)\. Check --ray-address, .* or use --engine here"
    with pytest.raises(ResourceError, match=words), connected("10.0.0.1:6379"):
        pass
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "variable", "used"),
    [(None, None, "local"), ("auto", None, "auto"), (None, "10.0.0.1:6379", "10.0.0.1:6379")],
)
def test_ray_is_started_here_unless_a_cluster_is_named(monkeypatch, address, variable, used):
    ray, given = pytest.importorskip("ray", reason=REASON), {}
    monkeypatch.delenv(engines.RAY_ADDRESS, raising=False)
    if variable:
        monkeypatch.setenv(engines.RAY_ADDRESS, variable)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    with connected(address):
        pass
    assert given["address"] == used
    assert ("object_store_memory" in given) == (used == "local"), "a cluster that is there has its own"


# ---------------------------------------------------------------- killed


def start(folder: Path) -> subprocess.Popen:
    """Start an extraction by a Ray of its own, in a session of its own."""
    words = [sys.executable, "-m", "tdsm", *command(folder, "--engine", "ray", "--actors", "1")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=-3, stderr=-3, start_new_session=True)


def wait_for_files(folder: Path, process: subprocess.Popen, count: int) -> None:
    while len(list(folder.rglob("shard*"))) < count:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)


def children_of_session(session: int) -> list[int]:
    """List processes that were started in a session and are alive."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            alive.append(int(stat.parent.name))
    return alive


def killed_actors(folder: Path, kills: int) -> int:
    """Extract by Ray, killing its actors once each has written some more; return how many were killed."""
    process, killed = start(folder), 0
    while process.poll() is None and killed < kills:
        wanted = len(list(folder.rglob("shard*"))) + 8
        while process.poll() is None and len(list(folder.rglob("shard*"))) < wanted:
            time.sleep(0.005)
        actors = [pid for pid in children_of_session(process.pid) if b"MapWorker" in command_line(pid)]
        for pid in actors:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert process.wait(300) == 0
    return killed


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_actors_that_die_are_started_again_and_lose_nothing(whole, tmp_path, place):
    pytest.importorskip("ray", reason=REASON)
    killed: list[int] = []
    while sum(killed) < ACTOR_KILLS:
        store = tmp_path / f"store-{len(killed)}"
        killed.append(killed_actors(store, kills=4))
        assert killed[-1] >= 2
        assert same(store, whole)
    print(f"{sum(killed)} actors killed in {len(killed)} stores")


@pytest.mark.slow
@pytest.mark.parametrize("files", DRIVER_KILLS)
def test_a_driver_that_dies_is_started_again_and_leaves_nothing_running(whole, tmp_path, place, files):
    pytest.importorskip("ray", reason=REASON)
    process = start(tmp_path / "store")
    wait_for_files(tmp_path / "store", process, files)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for _ in range(1200):
        if not children_of_session(process.pid):
            break
        time.sleep(0.1)
    assert children_of_session(process.pid) == []
    assert start(tmp_path / "store").wait(300) == 0
    assert same(tmp_path / "store", whole)


# ---------------------------------------------------------------- on a cluster that is there


@pytest.mark.slow
def test_two_actors_make_the_same_store(whole, tmp_path, cluster):
    assert made(tmp_path / "store", engine="ray", actors=2)
    assert same(tmp_path / "store", whole)
    assert cluster.is_initialized(), "a cluster that was there is not stopped"


@pytest.mark.slow
def test_what_is_there_is_not_sent_to_ray(whole, tmp_path, cluster):
    made(tmp_path / "store", shards="1/2")
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shard*")}
    assert made(tmp_path / "store", engine="ray", actors=1)
    assert same(tmp_path / "store", whole)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
def test_actors_that_would_wait_for_ever_are_refused_by_what_the_cluster_has(tmp_path, cluster):
    with pytest.raises(UsageError, match=f"sees {CPUS} processors and needs 1"):
        made(tmp_path / "store", engine="ray", actors=CPUS)


@pytest.mark.slow
def test_what_an_actor_fails_with_is_what_the_command_fails_with(tmp_path, cluster):
    made(tmp_path / "store", shards="1/9")
    (tmp_path / "store" / "test").write_text("in the way")
    with pytest.raises(ResourceError, match=r"exists.*test|Not a directory.*test"):
        made(tmp_path / "store", engine="ray", actors=1)
    assert len(list((tmp_path / "store" / "train").rglob("*.safetensors"))) > 3, "other shards are kept"


@pytest.mark.slow
def test_ray_reads_a_parquet_store_with_shapes_and_files_as_they_are(tmp_path, cluster):
    """The traps of Ray's own reading: files merged into one block, tensors that lose their shape."""
    import ray.data
    from ray.data.context import DataContext

    made(tmp_path / "store", format="parquet")
    files = sorted(map(str, (tmp_path / "store" / "train").glob("*.parquet")))
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.arrow_fixed_shape_tensor_format = type(context.arrow_fixed_shape_tensor_format)["ARROW_NATIVE"]
    read = ray.data.read_parquet(files, override_num_blocks=len(files)).materialize()
    assert read.num_blocks() == len(files) == 5
    batch = read.take_batch(54, batch_format="numpy")
    assert batch["tdsm"].shape == (54, 8, 8, 5)
    assert np.array_equal(np.sort(batch["id"]), np.sort(open_store(tmp_path / "store").ids("train")))
