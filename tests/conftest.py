"""Eight fake CPU devices for every test, chosen before JAX is imported; a test's kind, which is its folder's name."""

import atexit
import collections
import gc
import importlib.util
import itertools
import os
import pathlib
import shutil
import signal
import tempfile

import cpu_limit
import leftovers
import pytest
import share
import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.flags(devices=8)}"

if "XDG_CACHE_HOME" not in os.environ:  # of the user's own compiled programs none is read, and none is added
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cgrpo_tests_")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# What nohup has started, or a script in its background, ignores these, and all that tests start would.
for ignored, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, usual)

TESTS = pathlib.Path(__file__).parent
KINDS = ("integration", "launch", "tpu", "parity", "benchmarks", "browser")  # the folders of all that is no unit test
UNIT_SECONDS = 2.0
FAST = pytest.StashKey[bool]()  # whether programs are now compiled without optimisations

collect_ignore_glob = []
# Comparisons with transformers need the extra `parity`.
if not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
    collect_ignore_glob.append("*_parity.py")
# Compiling for TPUs needs the extra `tpu`, no TPU.
if not importlib.util.find_spec("libtpu"):
    collect_ignore_glob.append("*_tpu.py")


def pytest_addoption(parser):
    parser.addoption("--cpu", type=int, metavar="N", help="list the N tests that compute longest, and all folders")


def pytest_configure(config):
    # A machine on which the same takes longer has a factor.
    factor = float(os.environ.get("CGRPO_TEST_SECONDS_FACTOR", "1"))
    config.pluginmanager.register(cpu_limit.CpuLimit(UNIT_SECONDS * factor, config.getoption("cpu")))


def kind_of(path):
    folder = path.relative_to(TESTS).parts[0]
    return folder if folder in KINDS else "unit"


def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(kind_of(item.path))
    if share.percent() < 100:
        leave_out(config, items)
    items.sort(key=lambda item: kind_of(item.path) != "unit")  # fast programs are thrown away once


def leave_out(config, items):
    """Leaves all unit tests, and of every other file the tests that are drawn: one at least."""
    names = collections.defaultdict(list)
    for item in items:
        if kind_of(item.path) != "unit":
            names[item.path].append(item.nodeid)
    without_case = lambda name: name.partition("[")[0]  # noqa: E731
    drawn = {name for some in names.values() for name in share.of(some, kind=without_case)}
    kept, left_out = [], []
    for item in items:
        (kept if kind_of(item.path) == "unit" or item.nodeid in drawn else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def small_collections(one_device):
    """What has been imported is not looked through each time that garbage is collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def compiled_fast(request):
    """Tests compile many small programs and run each a few times. So most compile them without XLA's optimisations.

    Those whose subject is what is compiled (plans, benchmarks, TPUs), those of `launch/` and parity with transformers
    compile as users do, and so does the quickstart in CI. Processes that a test starts compile as it does: they must be
    bitwise alike. JAX keeps a program however it was compiled, so none is kept where that changes.
    """
    import jax

    fast = kind_of(request.path) in ("unit", "integration") and "planning" not in request.path.parts
    if request.config.stash.get(FAST, False) != fast:
        request.config.stash[FAST] = fast
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", fast)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(fast)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory):
    """What one of the processes that run tests has made, the others find."""
    own = tmp_path_factory.getbasetemp()
    os.environ["CGRPO_TEST_SHARED"] = str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session", autouse=True)
def one_device():
    import small_mesh

    from cgrpo_jax.runs import build_model  # after JAX has been told of the devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_model, "make_mesh", small_mesh.make)
        yield


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def forgotten_programs():
    """Every compiled program keeps parts of memory mapped, of which Linux grants a process 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if next(_tests) % 10 == 0 and maps.exists() and maps.read_text().count("\n") > 25_000:
        import jax

        jax.clear_caches()


@pytest.fixture
def nothing_is_left(tmp_path, monkeypatch):
    """No file and no process of a sandbox outlives the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    folder.chmod(0o777)
    tmp_path.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())
    assert not leftovers.lasting_orphans()


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises `KeyboardInterrupt`, though a shell's background job starts with it ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)
