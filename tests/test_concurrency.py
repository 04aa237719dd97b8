"""Threads, forks, interrupts, caches and read-only installs, each in a process of its own.

Numba's own threading layers abort on some of these (concurrent calls, a call after fork); the library's must not.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import LIMIT, run, start

import fastkl
import fastkl.kernels

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

SIXTEEN = """
start, seen, failures = threading.Barrier(16), [], []

def work():
    start.wait()
    try:
        seen.append(results())
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures
assert len(seen) == 16 and set(seen) == {results(1)}, seen
print("equal")
"""


def test_sixteen_threads_make_their_first_calls_at_once(tmp_path):
    assert run(SIXTEEN, tmp_path) == "equal\n"


def test_sixteen_threads_with_samplers_of_every_kind(tmp_path):
    """Without and with noise, each also on nearly exact steps: the kernels that keep more digits."""
    assert run(f"SAMPLERS = 'dpmpp_2m', 'sde_dpmpp_2m'\n{SIXTEEN}", tmp_path) == "equal\n"


AGAINST_NUMPY = """
from fastkl.kernels import reference
x = np.geomspace(1e-2, 1e2, 1500)

def check(name):
    for steps in range(1, 34):
        levels = np.geomspace(50, 0.1, steps + 1)[None]
        true = getattr(reference, name)(x, levels)
        np.testing.assert_allclose(getattr(fastkl, name)(x, levels), true, rtol=1e-9, err_msg=f"{name}, {steps} steps")

def together(names):
    threads = [threading.Thread(target=check, args=(name,)) for name in names for _ in range(8)]
    threading.excepthook = lambda failed: os._exit(3)
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print("right")
"""


def test_processes_that_compile_at_once_into_one_cache(tmp_path):
    """Each compiles what it calls, in several threads; what they left on disk must go together in a third process.

    Numba numbers the functions that a process compiles, and a loaded function's symbols give way to those of the same
    name that are there already: with two kernels of one name the numbers decided which code ran.
    """
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    calls = ["['divergence']", "['trajectory', 'output_variance']"]
    processes = [start(f"{AGAINST_NUMPY}together({names})", tmp_path, env=env) for names in calls]
    for process in processes:
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out, err) == (0, "right\n", "")
    assert list((tmp_path / "cache").rglob("*.nbi"))
    for first, second in (("divergence", "output_variance"), ("output_variance", "divergence")):
        code = f"{AGAINST_NUMPY}check({first!r}), check({second!r}), check('trajectory'), check({first!r})"
        run(code, tmp_path, env=env)


@needs_fork
def test_calls_after_a_fork(tmp_path):
    """The parent has used threads; the child and its child must be able to."""
    code = """
expected = results()
for depth in range(2):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert results() == expected
        print("parent", depth, flush=True)
        os._exit(0)
    assert results() == expected
"""
    assert run(code, tmp_path, flags=()) == "parent 1\nparent 0\n"


@needs_fork
def test_forks_while_other_threads_are_calling(tmp_path):
    code = """
expected, stop, wrong = results(), threading.Event(), []

def work():
    while not stop.is_set():
        if results() != expected:
            wrong.append(1)

threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
[thread.start() for thread in threads]
for _ in range(6):
    time.sleep(0.05)
    child = os.fork()
    if not child:
        os._exit(0 if results() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
assert not wrong
print("done")
"""
    assert run(code, tmp_path, flags=("-W", "ignore::DeprecationWarning")) == "done\n"


@needs_fork
def test_multiprocessing_pool_after_a_call(tmp_path):
    code = """
import multiprocessing
expected = results()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert set(pool.map(results, [1, 2, 5, 2])) == {expected}
print("done")
"""
    assert run(code, tmp_path, flags=("-W", "ignore::DeprecationWarning")) == "done\n"


def test_a_thread_goes_on_after_the_main_thread_has_ended(tmp_path):
    """Python joins it at exit; a pool of concurrent.futures refuses work by then."""
    for before in ("", "results()"):
        code = f"""
{before}
def work():
    time.sleep(0.3)
    print(len(results()))
threading.Thread(target=work).start()
"""
        assert run(code, tmp_path) == "64\n"


def test_calls_at_exit(tmp_path):
    """From 3.12 on no thread can be started at exit; the answer is owed all the same."""
    code = """
import atexit
results()
atexit.register(lambda: print(len(results())))
"""
    assert run(code, tmp_path) == "64\n"


INTERRUPTED = {  # about a minute of work each
    "fast kernel": "fastkl.divergence(np.ones(1_000_000), np.ones((600, 1)) * np.linspace(5, 1, 201), num_threads=2)",
    "one thread": "fastkl.divergence(np.ones(1_000_000), np.ones((300, 1)) * np.linspace(5, 1, 201), num_threads=1)",
    "pairs": "fastkl.divergence(np.ones(1_000_000), np.ones((40, 1)) * np.linspace(2, 1.999, 1001), prior='exact')",
    "many tasks": "run_all(lambda i: time.sleep(0.002), ((i,) for i in range(50_000)), 2)",
}


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
@pytest.mark.parametrize("delay", [0.03, 0.15, 0.6])
@pytest.mark.parametrize("call", INTERRUPTED)
def test_ctrl_c_returns_soon_and_the_next_call_works(tmp_path, call, delay):
    code = f"""
from fastkl._threads import run_all
expected = results()
print("ready", flush=True)
try:
    {INTERRUPTED[call]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert results() == expected
assert threading.active_count() == 1
print("done")
"""
    process = start(code, tmp_path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=6)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("still at work 6 s after SIGINT")
    assert (process.returncode, out, err) == (0, "interrupted\ndone\n", "")


def test_ctrl_c_in_the_middle_of_nothing_leaves_no_process(tmp_path):
    """Not caught: the process ends, by the signal's own status."""
    process = start(f"results()\nprint('ready', flush=True)\n{INTERRUPTED['fast kernel']}", tmp_path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in err


def test_errors_in_some_calls_do_not_touch_others(tmp_path):
    code = """
expected, failures = results(), []

def wrong():
    for _ in range(20):
        for bad in ([1.0, 2.0], [3.0, float("nan")], "levels"):
            try:
                fastkl.divergence(eigenvalues, bad, num_threads=2)
            except (ValueError, TypeError):
                continue
            failures.append(bad)

def right():
    for _ in range(5):
        if results() != expected:
            failures.append("right")

threads = [threading.Thread(target=f) for f in (wrong, right) * 4]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures
print("done")
"""
    assert run(code, tmp_path) == "done\n"


def test_an_error_in_a_task_ends_the_call_and_nothing_else():
    from fastkl._threads import run_all

    done = []

    def task(i):
        if i == 3:
            raise OSError("task 3")
        time.sleep(0.001)
        done.append(i)

    for threads in (1, 2, 5):
        done.clear()
        with pytest.raises(OSError, match="task 3"):
            run_all(task, ((i,) for i in range(1000)), threads)
        assert len(done) < 100
        done.clear()
        run_all(task, ((i,) for i in range(10, 50)), threads)
        assert sorted(done) == list(range(10, 50))
        run_all(task, iter(()), threads)
        run_all(task, [(5,)], threads)


def read_only_copy(target):
    """Copy the package as an installer lays it out; a regular file stands where each __pycache__ would be.

    No user can then write a cache there, root included, whom permissions do not stop.
    """
    package = target / "fastkl"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(fastkl.__file__).parent, package, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(Path(fastkl.kernels.__path__[0]), package / "kernels", ignore=ignore, dirs_exist_ok=True)
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("")
        folder.chmod(0o555)
    return package


def test_a_read_only_install_without_a_home(tmp_path):
    package = read_only_copy(tmp_path / "site")
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "home")  # no folder can be made below a file
    code = f"""
assert fastkl.__file__.startswith({str(tmp_path)!r}), fastkl.__file__
print(len(results()))
from fastkl.kernels import ddim_horner
assert ddim_horner.__file__.startswith({str(tmp_path)!r}), ddim_horner.__file__
assert sum(ddim_horner.tile_sums.stats.cache_hits.values()) == 0
"""
    env = {
        "PYTHONPATH": str(package.parent),
        "HOME": nowhere,
        "XDG_CACHE_HOME": nowhere,
        "NUMBA_CACHE_DIR": None,
    }
    try:
        assert run(code, tmp_path, env=env) == "64\n"
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc", ".pyc")]
    finally:
        for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
