"""The command line: bad files and arguments, missing packages, closed pipes and interrupts."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cli_calls import FEW, document, python, run

# bad input


class Exploit:
    """Unpickling this makes a file, so that a test can see whether it was unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("command", ["score", "spectrum"])
def test_pickles_are_refused(capsys, tmp_path, suffix, command):
    path, trace = tmp_path / f"array.{suffix}", tmp_path / "unpickled"
    array = np.array([Exploit(str(trace))], dtype=object)
    np.save(path, array, allow_pickle=True) if suffix == "npy" else np.savez(path, sigmas=array)
    status, out, err = run(capsys, command, str(path), "--json")
    assert (status, out) == (2, "")
    assert err.startswith(f"fastkl: error: {path}: not a NumPy file of plain numbers")
    bare = tmp_path / f"bare.{suffix}"
    bare.write_bytes(pickle.dumps(Exploit(str(trace))))
    assert run(capsys, command, str(bare))[0] == 2
    assert not trace.exists()


FILES = {
    "empty.npy": (b"", "not a NumPy file"),
    "noise.npz": (b"PK\x03\x04 nothing else", "not a NumPy file"),
    "cut.npy": (b"\x93NUMPY\x01\x00\xff", "not a NumPy file"),
    "words.csv": (b"3,2,0\n3,two,0\n", "words.csv, line 2: 'two' is not a number"),
    "gap.csv": (b"3,,0\n", "gap.csv, line 1: '' is not a number"),
    "ragged.txt": (b"3 2 0\n# comment\n3 0\n", "ragged.txt, line 3: has 2 numbers, lines before it 3"),
    "empty.txt": (b"# nothing\n\n", "empty.txt: holds no numbers"),
    "binary.txt": (b"\xff\xfe\x00", "binary.txt: not a text file in UTF-8"),
    "broken.json": (b"[3, 2,", "broken.json: not JSON"),
    "deep.json": (b"[" * 100_000, "deep.json: not JSON"),
    "object.json": (b'{"a": 1}', "must be a list of levels"),
    "ragged.json": (b"[[3, 2, 0], [3, 0]]", "sigmas: must be a rectangular array"),
    "words.json": (b'["a", "b"]', "sigmas: must be an array of real numbers"),
    "rising.json": (b"[1, 2, 0]", "sigmas[0, 1] = 2.0: must be below the element before it"),
    "nan.txt": (b"nan 1 0", "sigmas[0, 0] = nan"),
    "one.txt": (b"1", "sigmas: must hold at least two levels"),
    "huge.txt": (b"1e400 1 0", "huge.txt, line 1: '1e400' is out of the range of float64"),
    "tiny.csv": (b"1, 1e-400", "tiny.csv, line 1: '1e-400' is out of the range of float64"),
    "grouped.txt": (b"1_0 1 0", "grouped.txt, line 1: '1_0' is not a number"),
    "huge.json": (b"[1e400, 1, 0]", "'1e400' is out of the range of float64"),
    "large.json": (b"[1" + b"0" * 400 + b", 1, 0]", "sigmas: must be an array of real numbers"),
    "booleans.json": (b"[3, true, 0]", "sigmas[1] = True: must be a real number, not a boolean"),
    "nested.json": (b"[[3, 1, 0], [3, 1, false]]", "sigmas[1, 2] = False: must be a real number"),
    "levels.dat": (b"3 2 0", "must be a .npy, .npz, .csv, .txt or .json file"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_of_sigmas(capsys, tmp_path, name):
    content, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    status, out, err = run(capsys, "score", str(path))
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastkl: error: ")
    assert err.count("\n") == 1


ARRAYS = {
    "score": [
        ({"a": np.ones(2), "b": np.ones(2)}, "must hold one array or one called sigmas, found a, b"),
        ({"sigmas": np.array([1 + 2j])}, "sigmas: must be an array of real numbers"),
        ({"sigmas": np.ones((2, 2, 2))}, "sigmas: must be 1-D or 2-D"),
    ],
    "spectrum": [
        (
            {"a": np.ones(2), "b": np.ones(2)},
            "must hold one unnamed array or eigenvalues, with counts and mean",
        ),
        ({"counts": np.ones(2)}, "if it has them, found counts"),
        ({"eigenvalues": np.ones(2), "count": np.ones(2)}, "if it has them, found count, eigenvalues"),
        ({"eigenvalues": np.ones(2), "arr_0": np.ones(2)}, "if it has them, found arr_0, eigenvalues"),
        ({"eigenvalues": np.ones((2, 2))}, "eigenvalues: must be 1-D"),
        ({"eigenvalues": np.array([1.0, -1.0])}, "eigenvalues[1] = -1.0"),
        ({"eigenvalues": np.ones(2), "counts": np.ones(3)}, "counts"),
    ],
}


@pytest.mark.parametrize(
    ("command", "arrays", "message"),
    [(command, *case) for command, cases in ARRAYS.items() for case in cases],
)
def test_bad_arrays(capsys, tmp_path, command, arrays, message):
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    status, out, err = run(capsys, command, str(path))
    assert (status, out) == (2, "")
    assert message in err


ARGUMENTS = [
    ("", "the following arguments are required: COMMAND"),
    ("dance", "invalid choice: 'dance'"),
    (
        "rank --spectrum mnits",
        "spectrum 'mnits': must be a preset (breast_cancer, digits, mnist, photographs) or",
    ),
    ("rank --spectrum none.npy", "none.npy: No such file or directory"),
    ("rank --spectrum .", "spectrum '.': must be a preset"),
    (
        "rank --spectrum mnist --floor 0 --metric kl",
        "72 of its eigenvalues are 0, for which kl is not finite; add --floor",
    ),
    ("rank --floor=-1", "floor = -1.0: must be at least 0"),
    ("rank --floor nan", "floor = nan: must be finite"),
    ("rank --schedule dppm", "argument --schedule: invalid choice: 'dppm'"),
    ("rank --schedule tangent", "needs --schedule-option gamma=VALUE"),
    ("rank --schedule-option beta=1", "ddpm_linear has num_train_timesteps, beta_start, beta_end, no 'beta'"),
    ("rank --schedule-option beta_end", "must look like KEY=VALUE"),
    ("rank --schedule-option beta_end=x", "'x' is not a number"),
    ("rank --schedule-option beta_end=2", "beta_end = 2.0: must be below 1"),
    ("rank --schedule-option num_train_timesteps=1.5", "num_train_timesteps: must be an integer"),
    ("rank --schedule flow --schedule-option shift=1 --schedule-option shift=2", "shift is given twice"),
    ("rank --schedule-option num_train_timesteps=1_0", "'1_0' is not a number"),
    ("rank --schedule-option beta_end=1e-400", "'1e-400' is out of the range of float64"),
    (
        "rank --schedule-option num_train_timesteps=1 --schedule-option beta_start=1e-32 --steps 1",
        "no candidate has all its levels within [1e-15, 1e+15]",
    ),
    ("rank --steps 1_0", "argument --steps: must be an integer above 0, got '1_0'"),
    ("rank --steps 0", "argument --steps: must be an integer above 0, got '0'"),
    ("rank --steps 1001", "steps = 1001: must be at most 1000"),
    ("rank --steps ten", "must be an integer above 0, got 'ten'"),
    ("rank --metric fid", "argument --metric: invalid choice: 'fid'"),
    ("rank --prior none", "argument --prior: invalid choice: 'none'"),
    ("rank --threads 0", "argument --threads: must be an integer above 0"),
    ("rank --top 0", "argument --top: must be an integer above 0"),
    ("rank --candidates-per-family 0", "argument --candidates-per-family: must be an integer above 0"),
    ("rank --step 10", "unrecognized arguments: --step"),
    ("score", "the following arguments are required: FILE"),
    ("score none.csv", "none.csv: No such file or directory"),
    ("spectrum none.txt", "none.txt: No such file or directory"),
    ("warmup now", "unrecognized arguments: now"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_bad_arguments(capsys, arguments, message):
    status, out, err = run(capsys, *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastkl: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("content", [b"", b"noise", bytes(range(256)), b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_messages_about_noise_do_not_recommend_unpickling(capsys, tmp_path, suffix, content):
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(content)
    message = f"fastkl: error: {path}: not a NumPy file of plain numbers, or a damaged one\n"
    assert run(capsys, "score", str(path)) == (2, "", message)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (None, "-: stdin is closed"),
        (io.TextIOWrapper(io.BytesIO(b"\xff 1"), "utf-8"), "-: not text in UTF-8"),
    ],
    ids=["closed", "not UTF-8"],
)
def test_bad_stdin(capsys, monkeypatch, stdin, message):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(capsys, "score", "-", "--json") == (2, "", f"fastkl: error: {message}\n")


def test_bad_setting_of_threads(capsys, monkeypatch):
    monkeypatch.setenv("FASTKL_NUM_THREADS", "0")
    status, out, err = run(capsys, "rank", *FEW, "--json")
    assert (status, out) == (2, "")
    assert err.endswith("fastkl: error: FASTKL_NUM_THREADS = '0': must be a positive integer\n")


def test_interrupt_and_want_of_memory(capsys, monkeypatch):
    def stop(*arguments):
        raise stop.error

    monkeypatch.setattr("fastkl.cli.spectrum.read_data", stop)
    stop.error = KeyboardInterrupt()
    assert run(capsys, "spectrum", "mnist") == (130, "", "")
    stop.error = MemoryError()
    assert run(capsys, "spectrum", "mnist") == (2, "", "fastkl: error: not enough memory\n")


@pytest.mark.parametrize("command", ["rank", "score x.npy", "spectrum mnist", "doctor"])
def test_tables_need_rich(capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "rich", None)  # importing it fails
    status, out, err = run(capsys, *command.split())
    assert (status, out) == (2, "")
    assert 'pip install "fastkl[cli]"' in err


def test_json_needs_no_rich(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert document(capsys, "rank", *FEW)["candidates"] > 10
    assert document(capsys, "doctor")["cpu_backend"] == "works"
    assert run(capsys, "warmup")[0] == 0


# as a program


@pytest.mark.parametrize("argument", ["--help", "--version", "rank --help", "score --help"])
def test_help_imports_little(argument):
    code = (
        "import sys; from fastkl.cli import main; status = main(sys.argv[1:]); "
        "print(sorted({'numba', 'scipy', 'rich', 'cupy', 'matplotlib'} & set(sys.modules))); sys.exit(status)"
    )
    finished = python("-c", code, *argument.split())
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "[]"
    assert "fastkl" in finished.stdout


def test_module_prints_one_document():
    finished = python("-m", "fastkl", "rank", *FEW, "--json")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert json.loads(finished.stdout)["spectrum"]["name"] == "digits"


@pytest.mark.parametrize(
    "command", [["rank", *FEW], ["rank", *FEW, "--json"], ["spectrum", "mnist"], ["--help"]]
)
def test_a_closed_pipe_is_silent(command):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        finished = subprocess.run(
            [sys.executable, "-m", "fastkl", *command],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert finished.returncode in ((0, 141) if command == ["--help"] else (141,))  # argparse may ignore it
    assert b"Error" not in finished.stderr
    assert b"Traceback" not in finished.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_an_error_in_one_line():
    with open("/dev/full", "wb") as stdout:
        finished = subprocess.run(
            [sys.executable, "-m", "fastkl", "spectrum", "mnist", "--json"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert finished.returncode == 2
    assert finished.stderr.startswith(b"fastkl: error: ")
    assert finished.stderr.count(b"\n") == 1


def test_a_closed_stdout_is_no_error():
    code = "import sys; sys.stdout = None; from fastkl.cli import main; sys.exit(main(['spectrum', 'mnist']))"
    finished = python("-c", code)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_interrupting_the_program_is_clean():
    code = """
import os, signal, sys
from fastkl.cli import main

class Keyboard:
    def read(self):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stdin = Keyboard()
sys.exit(main(["score", "-", "--json"]))
"""
    finished = python("-c", code)
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "")
