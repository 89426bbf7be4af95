"""A process beside the export's own changes nothing: the same bundle, the same errors, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch
from palmtop.export import aside, export_checkpoint, memory
from palmtop.export.aside import beside, worthwhile
from palmtop.export.cli import main
from palmtop.export.reference import Reference
from palmtop.runtime.errors import RequestError, UnsupportedError

APART = pytest.mark.parametrize("apart", [False, True], ids=["in one process", "in two"])


def files(bundle):
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_a_bundle_made_by_two_processes_is_that_made_by_one(tmp_path, checkpoint):
    told: dict[int, list[str]] = {1: [], 2: []}
    for processes, lines in told.items():

        def progress(what, steps, lines=lines):
            lines.append(what)
            return lambda: None

        made = export_checkpoint(
            checkpoint("bert"), tmp_path / f"{processes}", to=["onnx"], processes=processes, progress=progress
        )
        assert made.seconds["reference"] > 0
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert sorted(told[1]) == sorted(told[2])
    assert told[1][0] == "Running the reference"
    assert told[2][0] == "Capturing the model"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_reference_raises_comes_before_what_the_capture_raises(tmp_path, checkpoint, monkeypatch, processes):
    def fails(*_):
        raise RequestError("no reference")

    def cannot(*_, **__):
        raise UnsupportedError("no capture")

    monkeypatch.setattr(Reference, "noise", fails)
    monkeypatch.setattr("palmtop.export.build.capture_methods", cannot)
    with pytest.raises(RequestError, match="no reference"):
        export_checkpoint(checkpoint("bert"), tmp_path / "bundle", to=["onnx"], processes=processes)
    assert not any(tmp_path.iterdir())


@APART
def test_values_come_in_order(apart):
    def work():
        yield os.getpid()
        yield torch.ones(3).numpy() * 2

    with beside(work, apart) as other:
        assert (other.get() != os.getpid()) == apart
        assert other.get().tolist() == [2, 2, 2]
    assert not multiprocessing.active_children()


@APART
def test_errors_keep_their_class_and_what_was_said(apart):
    def work():
        raise UnsupportedError("no such operation")
        yield

    with pytest.raises(UnsupportedError, match="no such operation") as raised, beside(work, apart) as other:
        other.get()
    assert raised.value.exit_code == 4
    assert ("in work" in "".join(getattr(raised.value, "__notes__", []))) == apart
    assert not multiprocessing.active_children()


def test_an_error_that_cannot_be_sent_is_told():
    class Local(Exception):
        pass

    def work():
        raise Local("of a class that only this function has")
        yield

    with pytest.raises(RuntimeError, match="Local: of a class"), beside(work, True) as other:
        other.get()


def test_a_process_that_the_system_ended_is_memory_that_ran_out():
    def work():
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    with pytest.raises(MemoryError), beside(work, True) as other:
        other.get()


def test_an_error_of_the_block_is_its_own_when_the_work_went_well():
    with pytest.raises(ZeroDivisionError), beside(lambda: iter([1, 2]), True):
        raise ZeroDivisionError
    assert not multiprocessing.active_children()


def test_work_that_hangs_ends_with_an_interrupted_block():
    def work():
        signal.pause()
        yield

    with pytest.raises(KeyboardInterrupt), beside(work, True):
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


def test_two_processes_are_for_small_models_where_memory_is(monkeypatch):
    monkeypatch.setattr(aside.sys, "platform", "linux")
    monkeypatch.setenv("PALMTOP_MEMORY", "4G")
    assert worthwhile(2, 90_000_000)
    assert not worthwhile(1, 90_000_000)
    assert not worthwhile(2, 4_000_000_000)
    monkeypatch.setenv("PALMTOP_MEMORY", "1G")
    assert not worthwhile(2, 90_000_000)
    monkeypatch.setenv("PALMTOP_MEMORY", "4G")
    monkeypatch.setattr(aside.sys, "platform", "darwin")
    assert not worthwhile(2, 90_000_000)


def test_a_second_process_needs_room_beside_the_first(monkeypatch):
    monkeypatch.setattr(aside.sys, "platform", "linux")
    for weights in (90_000_000, 400_000_000):
        monkeypatch.setenv("PALMTOP_MEMORY", str(memory.beside(weights)))
        assert not worthwhile(2, weights)
        monkeypatch.setenv("PALMTOP_MEMORY", str(memory.beside(weights) + 2 * 10**9 + weights))
        assert worthwhile(2, weights)


def test_how_many_processes_is_said_by_the_environment(monkeypatch, tmp_path, checkpoint, capsys):
    monkeypatch.setenv("PALMTOP_PROCESSES", "3")
    assert aside.allowed() == 3
    monkeypatch.delenv("PALMTOP_PROCESSES")
    assert aside.allowed() >= 1
    monkeypatch.setenv("PALMTOP_PROCESSES", "many")
    assert main(["export", str(checkpoint("bert")), "-o", str(tmp_path / "bundle"), "--to", "onnx"]) == 2
    assert "PALMTOP_PROCESSES=many" in capsys.readouterr().err
