"""Garbage is looked for seldom while a command works, as before when it is done, and for large models all along."""

from __future__ import annotations

import gc

from palmtop.export.collector import often, seldom


def test_what_held_before_holds_after():
    before = gc.get_threshold()
    with seldom():
        assert gc.get_threshold()[0] > before[0]
        with seldom():
            pass
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


def test_large_models_have_garbage_looked_for_as_before():
    before = gc.get_threshold()
    with seldom():
        often()
        assert gc.get_threshold() == before
    gc.set_threshold(699, 10, 10)
    try:
        often()  # nothing was changed, so nothing is put back
        assert gc.get_threshold() == (699, 10, 10)
    finally:
        gc.set_threshold(*before)


def test_leaving_the_block_does_not_begin_with_a_look_at_everything():
    with seldom():
        kept = [[] for _ in range(50_000)]
        before = [generation["collections"] for generation in gc.get_stats()]
    assert [generation["collections"] for generation in gc.get_stats()] == before
    assert gc.get_freeze_count() == 0
    assert len(kept) == 50_000
