"""Notebooks that fail, kernels and makes that are killed: what is said, and that the next run ends
well."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil

from tests.engine.toy import Toy, finish, kernel_of, until

SLEEP = "import os, time; time.sleep(float(os.environ.get('NAP', 0)))"


def test_a_failing_notebook_is_kept_and_named_and_the_others_run(toy):
    toy.notebook("11_first", "print('before')", "raise ValueError('the third cell is wrong')", "1")
    status, output = toy.make("figures")
    assert status == 2
    assert toy.ran(output) == ["11_first", "12_second", "21_third"]
    sentence = (
        "FAIL  11_first  cell 4/5  ValueError: the third cell is wrong  "
        "(see build/quick/11_first.failed.ipynb and build/quick/11_first.log)"
    )
    assert sentence in output
    assert "11_first                   FAILED  see build/quick/11_first.failed.ipynb" in output
    assert not toy.executed("11_first").exists()
    assert toy.executed("12_second").exists()
    assert "before" in (toy.root / "build/quick/11_first.failed.ipynb").read_text()
    assert "ValueError" in (toy.root / "build/quick/11_first.log").read_text()

    status, output = toy.make("figures", "ONLY=1")
    assert (status, toy.ran(output)) == (2, ["11_first"])
    assert "failed last time" in output

    toy.notebook("11_first", "print('mended')")
    assert toy.make("figures", "ONLY=11")[0] == 0
    assert not (toy.root / "build/quick/11_first.failed.ipynb").exists()


def test_a_file_that_is_no_notebook_is_one_sentence(toy):
    toy.write("notebooks/11_first.ipynb", '{"cells": [')
    status, output = toy.make("figures", "ONLY=1")
    assert status == 2
    assert "FAIL  11_first  notebooks/11_first.ipynb cannot be read as a notebook" in output
    assert toy.executed("12_second").exists()


def test_a_killed_kernel_is_noticed(toy):
    toy.notebook("11_first", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "1")
    status, output = toy.make("figures", "ONLY=11")  # given up after 90 s
    assert status == 2
    assert "FAIL  11_first  cell 3/4  the kernel died; it was killed, perhaps for want" in output
    assert (toy.root / "build/quick/11_first.failed.ipynb").exists()


def test_sigint_stops_the_kernel_and_the_next_run_ends_well(toy):
    toy.notebook("11_first", SLEEP, "print('whole')")
    process = toy.start("figures", "ONLY=11", NAP="60")
    kernel = kernel_of(toy, "11_first")
    os.killpg(process.pid, signal.SIGINT)
    status, output = finish(process, timeout=20)
    assert status in (2, 130, -signal.SIGINT)
    assert "stop  11_first: interrupted; the same command starts it again" in output
    until(lambda: not kernel.is_running(), 10, "the kernel lives on")
    assert not list((toy.root / "build/quick").glob("11_first.*ipynb"))
    assert toy.make("figures", "ONLY=11")[0] == 0


def test_make_killed_with_its_group(toy):
    toy.notebook("11_first", SLEEP, "print('whole')")
    process = toy.start("figures", "ONLY=11", NAP="60")
    kernel = kernel_of(toy, "11_first")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not toy.executed("11_first").exists()
    status, output = toy.make("figures", "ONLY=11")
    assert (status, toy.ran(output)) == (0, ["11_first"])
    assert "11_first (quick): interrupted last time" in output
    assert not kernel.is_running()
    assert not list((toy.root / "build/quick").glob("11_first.*.ipynb"))


def test_make_killed_alone_leaves_an_owner_that_is_waited_for(toy):
    toy.notebook("11_first", SLEEP, "print('whole')")
    process = toy.start("figures", "ONLY=11", NAP="3")
    kernel_of(toy, "11_first")
    owner = json.loads((toy.root / "build/quick/11_first/owner.json").read_text())["pid"]
    for parent in psutil.Process(owner).parents():
        if parent.name() == "make" and os.getpgid(parent.pid) == process.pid:
            parent.kill()
    assert psutil.pid_exists(owner)
    status, output = toy.make("figures", "ONLY=11")
    assert status == 0
    assert f"wait  11_first: process {owner} is running it" in output
    assert "fresh 11_first: the other process has run it" in output
    assert toy.ran(output) == []


def test_a_kernel_does_not_outlive_its_killed_runner(toy):
    toy.notebook("11_first", SLEEP)
    toy.start("figures", "ONLY=11", NAP="60")
    kernel = kernel_of(toy, "11_first")
    psutil.Process(kernel.ppid()).kill()
    until(lambda: not kernel.is_running(), 10, "the kernel lives on")


def test_two_makes_at_once_run_a_notebook_once(toy):
    toy.notebook("11_first", SLEEP)
    first = toy.start("figures", "ONLY=11", NAP="2")
    second = toy.start("figures", "ONLY=11", NAP="2")
    results = [finish(first), finish(second)]
    assert [status for status, _ in results] == [0, 0]
    assert sum(len(toy.ran(output)) for _, output in results) == 1


def test_figures_of_another_owner_are_left_when_the_kernel_is_not_ours(toy: Toy):
    """A recorded kernel whose number another process has by now is not killed."""
    assert toy.make("figures", "ONLY=12")[0] == 0
    note = {"pid": 1, "kernel": os.getpid(), "kernel_started": 0.0}
    toy.write("build/quick/12_second/owner.json", json.dumps(note))
    toy.notebook("12_second", "1")
    assert toy.make("figures", "ONLY=12")[0] == 0


def test_a_build_folder_that_cannot_be_made_is_one_sentence(toy):
    toy.write("build", "a file where the folder should be")
    status, output = toy.make("figures", "ONLY=12")
    assert status == 2
    assert "figures: cannot write in build/: " in output


def test_interrupting_one_who_waits_leaves_the_owner_in_peace(toy):
    toy.notebook("11_first", SLEEP, "print('whole')")
    owner = toy.start("figures", "ONLY=11", NAP="5")
    kernel_of(toy, "11_first")
    waiting = toy.start("figures", "ONLY=11")
    time.sleep(1.5)
    os.killpg(waiting.pid, signal.SIGINT)
    status, output = finish(waiting, timeout=20)
    assert status != 0
    assert "wait  11_first: process " in output
    assert "stop  11_first: interrupted" in output
    assert finish(owner)[0] == 0
    assert toy.executed("11_first").exists()
