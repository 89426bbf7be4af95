"""A captured model under a plan: where its weights are, what flows through it, smoothing, and the table of costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from palmtop.export.modules import user_path
from palmtop.export.quantization import (
    Quantizer,
    check_plan,
    observe,
    preset_plan,
    quantized,
    sensitivity_rows,
    single_rows,
)
from palmtop.quantize.calibrate import Statistics, calibrate
from palmtop.quantize.execute import run
from palmtop.quantize.scheme import PRESETS, Plan, Scheme
from palmtop.quantize.sites import find_sites
from palmtop.quantize.smooth import smooth
from palmtop.runtime.errors import RequestError

from .models import Small, TiedHead, captured, feeds


@pytest.fixture(scope="module")
def model():
    return captured()


@pytest.fixture(scope="module")
def statistics(model):
    return observe(model, feeds())


def sites(model):
    return {user_path(site.name): site for site in find_sites(model.program)}


def outputs(program, feeds):
    return [run(program, feed)[0] for feed in feeds]


# --- where weights are -----------------------------------------------------------------------------------------------


def test_sites_are_the_weights_worth_quantizing_in_the_order_of_their_use(model):
    found = sites(model)
    assert next(iter(found)) == "table.weight"
    assert set(found) == {"table.weight", "query.weight", "key.weight", "down"}  # `kind` has 128 numbers
    assert (found["table.weight"].kind, found["down"].kind) == ("embedding", "linear")
    assert found["down"].transposed
    assert (found["down"].rows, found["down"].columns) == (64, 96)


def test_a_preset_gives_every_weight_its_scheme(model):
    plan = preset_plan(model, PRESETS["int4"])
    assert plan.weights["table.weight"] == PRESETS["int4"].embedding
    assert plan.weights["down"] == PRESETS["int4"].layer
    assert plan.precision == "int4"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_table_that_is_the_head_too_is_stored_as_layers_are_where_these_round_their_inputs(preset):
    model = captured(TiedHead())
    (site,) = find_sites(model.program)
    assert site.tied
    assert preset_plan(model, preset).weights == {user_path(site.name): preset.layer}
    weights_alone = dataclasses.replace(preset, layer=dataclasses.replace(preset.layer, activations="none"))
    assert preset_plan(model, weights_alone).weights == {user_path(site.name): preset.embedding}


def test_a_plan_of_another_model_is_refused_and_what_comes_close_is_named(model):
    with pytest.raises(RequestError, match=r"querry\.weight, no weight of this model.*Close: query\.weight"):
        check_plan(model, Plan({"querry.weight": Scheme(8)}))


# --- calibration -----------------------------------------------------------------------------------------------------


def test_statistics_by_hand():
    seen = Statistics.empty(2)
    seen.add(torch.tensor([[[1.0, -2.0], [3.0, 4.0]]]))
    seen.add(torch.tensor([[0.0, -5.0]]))
    seen.finish()
    assert seen.hessian.tolist() == [[10.0, 10.0], [10.0, 45.0]]
    assert seen.largest.tolist() == [3.0, 5.0]
    assert (seen.lows.tolist(), seen.highs.tolist()) == ([0.0, -5.0], [3.0, 4.0])
    assert seen.rows == 3


def test_what_layers_read_is_seen_once_for_all_layers_that_read_it(model, statistics):
    rows = sum(feed["x"].size for feed in feeds())
    assert {entry.rows for entry in statistics.values()} == {rows}
    assert sorted(len(entry.hessian) for entry in statistics.values()) == [64, 96]
    entry = next(entry for entry in statistics.values() if len(entry.hessian) == 64)
    small = Small()
    hidden = torch.cat([small.table(torch.from_numpy(feed["x"]))[0] for feed in feeds()]) + small.kind.weight[0]
    assert torch.allclose(entry.hessian, hidden.t() @ hidden, rtol=1e-4, atol=1e-2)
    assert torch.allclose(entry.largest, hidden.abs().amax(0))


def test_calibration_without_inputs_is_refused(model):
    with pytest.raises(RequestError, match="at least one input; the data has none"):
        calibrate(model.program, find_sites(model.program), [])


def test_calibration_that_gives_nan_or_infinity_is_refused():
    broken = Small()
    broken.table.weight.data[3] = float("inf")
    other = captured(broken)
    observe(other, [{"x": np.array([[1, 2, 4]])}])
    with pytest.raises(RequestError, match="an input makes the model give NaN or infinity"):
        observe(other, [{"x": np.array([[1, 2, 3]])}])


def test_padding_is_cut_off_and_rows_come_one_at_a_time():
    batch = {"ids": np.arange(8).reshape(2, 4), "attention_mask": np.array([[1, 1, 1, 1], [0, 1, 1, 0]])}
    rows = list(single_rows([batch, {"image": np.zeros((2, 3))}]))
    assert [row["ids"].tolist() for row in rows[:2]] == [[[0, 1, 2, 3]], [[5, 6]]]
    assert rows[2]["image"].shape == (2, 3)
    assert len(list(single_rows([batch] * 5, most=5))) == 2


# --- smoothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_smoothing_leaves_what_the_model_gives(model, statistics, strength):
    other = model.private_program()
    other._state_dict = dict(other.state_dict)
    smooth(other, find_sites(other), statistics, strength)
    unseen = feeds(seed=9)
    for expected, actual in zip(outputs(model.program, unseen), outputs(other, unseen), strict=True):
        assert float((expected - actual).abs().max() / expected.abs().max()) < 2e-6


def test_smoothing_is_one_product_for_all_layers_that_read_an_activation(model, statistics):
    other = model.private_program()
    other._state_dict = dict(other.state_dict)
    found = smooth(other, find_sites(other), statistics, 0.5)
    added = [name for name in other.state_dict if name.startswith("palmtop_smooth")]
    assert len(added) == 2  # `query` and `key` share theirs
    assert not any(name.startswith("palmtop_smooth") for name in model.program.state_dict)
    again = calibrate(other, find_sites(other), feeds())
    for name, entry in again.items():
        assert torch.allclose(entry.hessian, found[name].hessian, rtol=1e-3, atol=1e-3 * float(entry.hessian.max()))
        assert torch.allclose(entry.largest, found[name].largest, rtol=1e-5)
        assert torch.allclose(entry.lows, found[name].lows, rtol=1e-5)
        assert torch.allclose(entry.highs, found[name].highs, rtol=1e-5)


def test_smoothing_makes_the_large_channel_small(model, statistics):
    other = model.private_program()
    other._state_dict = dict(other.state_dict)
    found = smooth(other, find_sites(other), statistics, 0.7)
    before = next(entry.largest for entry in statistics.values() if len(entry.largest) == 64)
    after = next(entry.largest for name, entry in found.items() if name not in statistics and len(entry.largest) == 64)
    assert float(before.max() / before.median()) > 15
    assert float(after.max() / after.median()) < 4


def test_layers_that_calibration_gave_nothing_but_zeros_are_left_alone(model):
    program = model.private_program()
    program._state_dict = dict(program.state_dict)
    nothing = {name: Statistics.empty(len(entry.largest)) for name, entry in observe(model, feeds()).items()}
    assert smooth(program, find_sites(program), nothing, 0.5) == nothing
    assert not [name for name in program.state_dict if name.startswith("palmtop_smooth")]


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_quantized_model_computes_with_the_numbers_that_its_integers_stand_for(model, statistics):
    plan = preset_plan(model, PRESETS["int8"])
    result = quantized(model, plan, statistics)
    assert {user_path(name) for name in result.quantized} == set(plan.weights)
    for name, weight in result.quantized.items():
        assert torch.equal(result.program.state_dict[name].detach(), weight.dequantize())
        assert weight.scheme == plan.weights[user_path(name)] or user_path(name) == "table.weight"
    for expected, actual in zip(outputs(model.program, feeds()), outputs(result.program, feeds()), strict=True):
        cosine = torch.nn.functional.cosine_similarity(expected.flatten(), actual.flatten(), dim=0)
        assert 0.999 < float(cosine) < 1


def test_the_original_stays_as_it_was(model, statistics):
    before = {name: value.clone() for name, value in model.program.state_dict.items()}
    quantized(model, preset_plan(model, PRESETS["int4"]), statistics)
    assert before.keys() == model.program.state_dict.keys()
    assert all(torch.equal(before[name], value) for name, value in model.program.state_dict.items())
    assert not model.quantized


def test_plans_of_one_quantizer_share_their_integers(model, statistics):
    quantizer = Quantizer(model, statistics)
    first = quantizer.apply({"query.weight": Scheme(8)})
    both = quantizer.apply({"query.weight": Scheme(8), "down": Scheme(4)})
    (name,) = first.quantized
    assert both.quantized[name] is first.quantized[name]
    assert torch.equal(both.program.state_dict[name], first.program.state_dict[name])
    assert not torch.equal(both.program.state_dict[sites(model)["down"].name], Small().down)


def test_the_table_has_what_each_weight_costs_alone(model, statistics):
    quantizer = Quantizer(model, statistics)
    ladder = (Scheme(4, "block", 32), Scheme(8), None)
    table = quantizer.table(dict.fromkeys(sites(model), ladder), feeds())
    for path, rungs in table.rungs.items():
        assert [rung.scheme for rung in rungs] == list(ladder)
        assert rungs[0].size < rungs[1].size < rungs[2].size == 4 * sites(model)[path].size
        assert rungs[0].cost > 10 * rungs[1].cost > 0
        assert rungs[2].cost == 0
    alone = quantizer.apply({"down": ladder[0]})
    cosines = [
        torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).flatten()
        for one, other in zip(outputs(model.program, feeds()), outputs(alone.program, feeds()), strict=True)
    ]
    assert table.rungs["down"][0].cost == pytest.approx(float(1 - torch.cat(cosines).mean()), rel=1e-6)


def test_hessians_that_have_no_room_together_give_the_same_integers(model):
    schemes = {path: Scheme(4, "block", 32) for path in sites(model)}
    made = []
    for room in (2**30, 4 * 64 * 64, 0):
        statistics = observe(model, feeds(), room=room)
        quantizer = Quantizer(model, statistics, 0.5, feeds=feeds(), room=room)
        made.append({path: quantizer.weight(path, scheme) for path, scheme in schemes.items()})
        if room < 2**30:
            assert [entry.hessian is None for entry in statistics.values()].count(False) == 1
            assert sum(entry.hessian is not None for entry in quantizer.statistics.values()) == 1
    for path, weight in made[0].items():
        for other in made[1:]:
            assert (weight.integers != other[path].integers).float().mean() < 0.01  # sums in another order
    nearest = Quantizer(model, observe(model, feeds()), 0.5, "nearest").weight("down", schemes["down"])
    assert (nearest.integers != made[0]["down"].integers).float().mean() > 0.05


def test_sensitivities_are_measured_on_several_lengths_in_batches(model):
    rows = [{"x": np.full((1, length), 3)} for length in (5, 7, 7, 9, 9, 9, 4, 4, 4, 4) * 40]
    shapes = [batch["x"].shape for batch in sensitivity_rows(model, rows)]
    assert len({length for _, length in shapes}) >= 3
    assert max(count for count, _ in shapes) > 20
    assert 700 < sum(count * length for count, length in shapes) < 1100


def test_sensitivities_of_large_inputs_are_measured_on_a_few_all_the_same(model):
    rows = [{"x": np.full((1, 2000), 3)} for _ in range(10)]
    assert sum(len(batch["x"]) for batch in sensitivity_rows(model, rows)) == 4
