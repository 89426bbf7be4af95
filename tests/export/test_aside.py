"""A process beside the export's own changes nothing: the same bundle, the same errors, and nothing left behind."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from palmtop.export import aside, export_checkpoint, memory
from palmtop.export.aside import Turns, beside, worthwhile
from palmtop.export.cli import main
from palmtop.export.reference import Reference
from palmtop.export.targets import get_target
from palmtop.runtime.errors import RequestError, UnsupportedError

APART = pytest.mark.parametrize("apart", [False, True], ids=["in one process", "in two"])


def files(bundle):
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_bundle_made_by_several_processes_is_that_made_by_one(tmp_path, checkpoint, quantize):
    told: dict[int, list[str]] = {1: [], 2: []}
    for processes, lines in told.items():

        def progress(what, steps, lines=lines):
            lines.append(what)
            return lambda: None

        made = export_checkpoint(
            checkpoint("bert"), tmp_path / f"{processes}", quantize=quantize, processes=processes, progress=progress
        )
        assert all(made.seconds[stage] > 0 for stage in ("reference", "onnx", "coreml", "executorch"))
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert sorted(told[1]) == sorted(told[2])
    assert told[1][0] == "Running the reference"
    assert told[2][0] == "Capturing the model"


def lowering(monkeypatch, **replaced):
    """Targets whose `lower` does something else."""
    for name, function in replaced.items():
        target = get_target(name)
        monkeypatch.setattr(sys.modules[target.lower.__module__], "TARGET", dataclasses.replace(target, lower=function))


def test_targets_are_shared_by_two_processes(tmp_path, checkpoint, monkeypatch):
    coreml, executorch = get_target("coreml").lower, get_target("executorch").lower
    begun, worker = multiprocessing.Event(), multiprocessing.Value("l", 0)

    def waits(*asked):
        assert begun.wait(60)  # so that neither process takes all
        coreml(*asked)

    def says_who(*asked):
        worker.value = os.getpid()
        begun.set()
        executorch(*asked)

    lowering(monkeypatch, coreml=waits, executorch=says_who)
    made = export_checkpoint(checkpoint("bert"), tmp_path / "bundle", to=["coreml", "executorch"], processes=2)
    assert worker.value not in (0, os.getpid())
    assert [entry.status for entry in made.report.artifacts] == ["passed", "passed"]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("failing", ["onnx", "coreml", "executorch"])
def test_a_target_that_cannot_be_lowered_is_told_whichever_process_found_out(
    tmp_path, checkpoint, monkeypatch, processes, failing
):
    def fails(*_):
        raise UnsupportedError(f"not in {failing}")

    lowering(monkeypatch, **{failing: fails})
    with pytest.raises(UnsupportedError, match=f"not in {failing}"):
        export_checkpoint(checkpoint("bert"), tmp_path / "bundle", processes=processes)
    assert not any(tmp_path.iterdir())
    assert not multiprocessing.active_children()


def test_each_place_is_given_once():
    turns = Turns(4)
    assert [turns.first(), turns.last(), turns.last(), turns.first()] == [0, 3, 2, 1]
    assert turns.first() is turns.last() is None


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


def test_an_interrupted_block_lets_the_work_clean_up(tmp_path, capfd):
    begun = multiprocessing.Event()

    def work():
        try:
            begun.set()
            signal.pause()
            yield
        finally:
            (tmp_path / "clean").touch()

    def interrupted():
        with beside(work, True):
            assert begun.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "clean").exists()
    assert "Traceback" not in capfd.readouterr().err


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
