"""Every example that a reader can copy runs: docstrings, README, docs."""

import doctest
import operator
import re
from pathlib import Path

import matplotlib
import pytest

import langevin_ppl as lp

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "docs/quickstart.md",
    "docs/numpyro.md",
    "docs/bias.md",
    "docs/minibatches.md",
    "docs/streams.md",
    "docs/scores.md",
    "docs/diffusion.md",
    "docs/energy.md",
    "docs/optimization.md",
    "docs/checkpoints.md",
    "docs/devices.md",
    "docs/blackjax.md",
    "docs/adding_a_kernel.md",
]


EXAMPLES = [name for name in lp.__all__ if not name.endswith(("Warning", "Error"))]


# Of these rooms, what a user calls; what comes back, and contracts, have no example of their own.
ROOMS = [
    f"{room}.{name}"
    for room in ("diagnostics", "diffusion", "distributions", "energy", "optim", "scores", "taming")
    for name in operator.attrgetter(room)(lp).__all__
    if name[0].islower() or room == "distributions"
]


# Those that train or run for more than some seconds.
SLOW = {
    "dalmc",
    "diagnostics.gradient_noise",
    "energy.exchange",
    "energy.fit",
    "energy.walk",
    "scores.fit",
    "scores.unet",
}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in [*EXAMPLES, "infer.Langevin", *ROOMS]
]


@pytest.mark.parametrize("name", NAMES)
def test_docstring_examples(name):
    docstring = operator.attrgetter(name)(lp).__doc__
    test = doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)
    assert test.examples, f"{name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::langevin_ppl.DivergenceWarning")
@pytest.mark.parametrize("page", PAGES)
def test_pages(page, tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    # One after the other, as a reader would paste them.
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)  # noqa: S102


def test_kernel_table_is_complete():
    """The README and the API page name every public kernel."""
    from langevin_ppl.kernels import Kernel

    kernels = [name for name in lp.__all__ if isinstance(getattr(lp, name), Kernel)]
    readme, api = (ROOT / "README.md").read_text(), (ROOT / "docs/api.md").read_text()
    for name in kernels:
        assert f"| `lp.{name}` |" in readme
        assert f"autofunction:: langevin_ppl.{name}\n" in api
    for name in [*lp.__all__, *ROOMS]:
        assert f"langevin_ppl.{name}\n" in api
