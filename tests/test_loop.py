"""The stepping loop: where a run is cut changes nothing, and Ctrl-C loses nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langevin_ppl.loop import CHUNK_BYTES, MAX_CAPACITY, Look, capacity_for, drive, repeat

KEY = jax.random.key(0)


def walk(carry, index):
    carry = 0.9 * carry + jax.random.normal(jax.random.fold_in(KEY, index), carry.shape)
    return carry, {"position": carry, "index": index}


@jax.jit
def program(carry, start, count):
    return repeat(walk, carry, start, count, 64)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, None])
def test_chunks_change_no_draw(chunk):
    whole_carry, whole = jax.lax.scan(walk, jnp.zeros(3), jnp.arange(150))
    outcome = drive(program, jnp.zeros(3), 150, 64, chunk=chunk)
    assert outcome.complete
    np.testing.assert_array_equal(outcome.outputs["index"], np.arange(150))
    np.testing.assert_array_equal(outcome.outputs["position"], whole["position"])
    np.testing.assert_array_equal(outcome.carry, whole_carry)


def test_one_compilation_for_chunks_of_any_length():
    traces = []

    @jax.jit
    def counted(carry, start, count):
        traces.append(count)
        return repeat(walk, carry, start, count, 64)

    for chunk in (3, 50, 64):
        drive(counted, jnp.zeros(3), 100, 64, chunk=chunk)
    assert len(traces) == 1


def test_interrupt_returns_what_is_done():
    def interrupted(carry, start, count):
        if start >= 40:
            raise KeyboardInterrupt
        return program(carry, start, count)

    outcome = drive(interrupted, jnp.zeros(3), 150, 64, chunk=20)
    assert not outcome.complete
    whole = jax.lax.scan(walk, jnp.zeros(3), jnp.arange(40))
    np.testing.assert_array_equal(outcome.outputs["position"], whole[1]["position"])
    np.testing.assert_array_equal(outcome.carry, whole[0])


def test_interrupt_before_the_first_chunk_is_raised():
    def interrupted(carry, start, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(interrupted, jnp.zeros(3), 10, 8)


def test_progress_bar_is_shown_only_when_asked_and_not_under_ci(capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    drive(program, jnp.zeros(3), 20, 64, label="walk")
    assert "walk" not in capsys.readouterr().err
    drive(program, jnp.zeros(3), 20, 64, label="walk", progress=True)
    assert "20/20" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    drive(program, jnp.zeros(3), 20, 64, label="walk", progress=True)
    assert capsys.readouterr().err == ""


def test_capacity_is_bounded_by_memory():
    assert capacity_for(1) == MAX_CAPACITY
    for size in (10_000, CHUNK_BYTES // 10, CHUNK_BYTES, 10 * CHUNK_BYTES):
        capacity = capacity_for(size)
        # A power of two, and the largest one that fits.
        assert capacity & (capacity - 1) == 0
        assert capacity == 1 or capacity * size <= CHUNK_BYTES < 2 * capacity * size


def look_at(stops, seen=None):
    """A monitor that looks at the steps ``stops`` and ends the run at the last of them."""

    def monitor(outputs, done):
        if seen is not None:
            seen.append((done, outputs["index"].copy()))
        later = [stop for stop in stops if stop > done]
        return Look(not later, later[0] if later else done, stops[-1], f"at {done}")

    return monitor


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_a_monitor_stops_at_the_same_step_wherever_chunks_are_cut(chunk):
    seen = []
    monitor = look_at([100, 123, 131], seen)
    outcome = drive(program, jnp.zeros(3), 1000, 64, chunk=chunk, monitor=monitor)
    # It sees every output so far, and nothing but at the steps that it named.
    assert [done for done, _ in seen] == [100, 123, 131]
    for done, index in seen:
        np.testing.assert_array_equal(index, np.arange(done))
    whole_carry, whole = jax.lax.scan(walk, jnp.zeros(3), jnp.arange(131))
    assert outcome.complete
    np.testing.assert_array_equal(outcome.outputs["position"], whole["position"])
    np.testing.assert_array_equal(outcome.carry, whole_carry)


def test_a_monitor_that_is_never_content_ends_at_the_cap():
    seen = []
    outcome = drive(
        program, jnp.zeros(3), 150, 64, monitor=look_at([100, 140, 10_000], seen), chunk=50
    )
    assert len(outcome.outputs["index"]) == 150
    assert [done for done, _ in seen] == [100, 140, 150]


def test_the_bar_shows_what_the_monitor_expects(capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monitor = look_at([100, 110])
    drive(program, jnp.zeros(3), 1000, 64, label="walk", progress=True, monitor=monitor)
    shown = capsys.readouterr().err
    assert "110/110" in shown and "at 110" in shown
