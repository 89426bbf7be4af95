"""Libraries are imported without what they import for others, and can do everything when it is asked of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from palmtop.export.imports import absent, on_call

CODE = """
import sys
from palmtop.export import hf
unasked = ("scipy.optimize", "torchao", "networkx", "transformers.exporters.exporter_onnx")
print([name for name in unasked if name in sys.modules])
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print(linear_sum_assignment([[2, 1], [1, 2]])[1].tolist())
import scipy.optimize
from torch._functorch._activation_checkpointing.graph_info_provider import nx
print(type(nx.DiGraph([(1, 2)])).__module__)
print(scipy.optimize.linear_sum_assignment is not linear_sum_assignment, bool(hf.onnx_translations()))
"""


def test_a_model_can_be_loaded_without_what_is_for_training_detectors_and_for_other_formats():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[1, 0]", "networkx.classes.digraph", "True True"]


LISTED = """
import json
{first}
import transformers
from transformers import models
lists = [{{name: sorted(module.__all__) for name, module in (("all", transformers), ("models", models))}}]
print(json.dumps([lists, transformers.models.bert.modeling_bert.BertModel.__module__]))
"""


def test_transformers_lists_the_same_models_when_it_reads_their_files_once():
    listed = [
        subprocess.run(
            [sys.executable, "-c", LISTED.format(first=first)], capture_output=True, text=True, check=True
        ).stdout
        for first in ("", "from palmtop.export.imports import import_transformers; import_transformers()")
    ]
    assert "BertModel" in listed[0]
    assert listed[0] == listed[1]


def test_a_function_is_imported_when_it_is_called(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with on_call({"colorsys": ("rgb_to_hsv",)}):
        from colorsys import rgb_to_hsv
    assert "colorsys" not in sys.modules
    assert rgb_to_hsv(1.0, 0.0, 0.0) == (0.0, 1.0, 1.0)
    assert "colorsys" in sys.modules


def test_what_is_there_already_stays():
    with on_call({"json": ("dumps",)}), absent("json"):
        import json

        assert json.loads("1") == 1


def test_what_is_absent_comes_back(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with absent("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv
