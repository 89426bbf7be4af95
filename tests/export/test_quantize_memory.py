"""A search that was interrupted goes on; what it found is remembered for the same content only."""

from __future__ import annotations

import pytest
from palmtop.export.judge import Judge
from palmtop.export.quantization import Quantizer

from .quantizing import Beside, export_layers, export_many, export_three, files


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """How often costs were measured and plans executed, with a memory of its own."""
    monkeypatch.setenv("PALMTOP_CACHE", str(tmp_path / "cache"))
    counts = {"costs": 0, "trials": 0}
    table, execute = Quantizer.table, Judge.execute

    def counting_table(*arguments, **options):
        counts["costs"] += 1
        return table(*arguments, **options)

    def counting_execute(*arguments):
        counts["trials"] += 1
        if counts["trials"] == counts.get("interrupt"):
            raise KeyboardInterrupt
        return execute(*arguments)

    monkeypatch.setattr(Quantizer, "table", counting_table)
    monkeypatch.setattr(Judge, "execute", counting_execute)
    return counts


def test_an_interrupted_search_goes_on_where_it_was(counted, tmp_path):
    whole = export_many(tmp_path / "whole")
    needed = counted["trials"]
    assert needed >= 3
    for entry in (tmp_path / "cache").rglob("*.json"):
        entry.unlink()
    counted.update(costs=0, trials=0, interrupt=3)
    with pytest.raises(KeyboardInterrupt):
        export_many(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cache"}
    result = export_many(tmp_path / "b")
    assert counted["costs"] == 1
    assert counted["trials"] == needed + 1  # the one that was interrupted is done again
    assert [trial["agreement"] for trial in result.trials] == [trial["agreement"] for trial in whole.trials]
    assert files(tmp_path / "b") == files(tmp_path / "whole")


def test_what_a_search_found_holds_for_the_same_content_only(counted, tmp_path):
    export_three(25, tmp_path / "a", quantize="auto", min_agreement=0.99)
    first = counted["trials"]
    export_three(25, tmp_path / "b", quantize="auto", min_agreement=0.99, keep_best=True)
    assert (counted["costs"], counted["trials"]) == (1, first + 1)  # the chosen plan's artifacts are made again
    export_three(25, tmp_path / "c", quantize="auto", min_agreement=0.9)
    assert (counted["costs"], counted["trials"] > first + 1) == (1, True)  # the same costs, other trials
    other = Beside(0.5, 25, 0.5)
    other.layers[2].weight.data *= 2
    export_layers(other, tmp_path / "d", quantize="auto", min_agreement=0.9)
    assert counted["costs"] == 2


def test_a_damaged_memory_is_no_memory(counted, tmp_path):
    export_three(25, tmp_path / "a", quantize="auto", min_agreement=0.99)
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text(path.read_text()[:-5])
    export_three(25, tmp_path / "b", quantize="auto", min_agreement=0.99)
    assert counted["costs"] == 2
    assert files(tmp_path / "a") == files(tmp_path / "b")
