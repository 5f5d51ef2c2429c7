"""Where the first call's compile time goes: tracing, lowering and compiling of every program.

Eight schools (non-centred), ``lp.sample`` with ``lp.mala``, 4 chains of 500 + 500 steps, in a
fresh process, from JAX's own duration events (``jax.monitoring``). Tracing of a program includes
that of the programs it calls, so the sum of the column counts some of it twice; lowering and
compiling do not. The numbers are of the process that runs this script.

    python examples/benchmarks/compile_breakdown.py [--quick]
"""

import time
from collections import defaultdict

import jax
from common import finish, machine, parser
from eight_schools import EFFECT, SIGMA, model

import langevin_ppl as lp

STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
SHOWN = 12


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    seconds = defaultdict(lambda: dict.fromkeys(("trace", "lower", "compile"), 0.0))

    def listen(event, duration, **facts):
        if event in STAGES:
            # Tracing names the function, the other stages `jit(function)`.
            name = facts.get("fun_name", "?").removeprefix("jit(").removesuffix(")")
            seconds[name][STAGES[event]] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    began = time.perf_counter()
    target = lp.target(model, SIGMA, effect=EFFECT)
    idata = lp.sample(jax.random.key(0), target, lp.mala, num_warmup=500, num_samples=500)
    total = time.perf_counter() - began
    programs = dict(seconds)
    began = time.perf_counter()
    again = lp.sample(jax.random.key(1), target, lp.mala, num_warmup=500, num_samples=500)
    second = time.perf_counter() - began

    rows = [
        {"program": f"`{name}`", **stages, "sum": sum(stages.values())}
        for name, stages in programs.items()
    ]
    rows.sort(key=lambda row: -row["sum"])
    columns = ("trace", "lower", "compile", "sum")
    others = {"program": f"{len(rows[SHOWN:])} others"}
    others |= {name: sum(row[name] for row in rows[SHOWN:]) for name in columns}
    everything = {"program": "all"} | {name: sum(row[name] for row in rows) for name in columns}
    calls = [
        {
            "call": name,
            "seconds": whole,
            "warm-up": tree.attrs["warmup_time"],
            "sampling": tree.attrs["sampling_time"],
        }
        for name, whole, tree in (("first", total, idata), ("second", second, again))
    ]
    return finish(
        "compile_breakdown",
        options,
        host,
        precision="float32",
        tables={"The calls": calls, "Seconds by program": [*rows[:SHOWN], others, everything]},
    )


if __name__ == "__main__":
    main()
