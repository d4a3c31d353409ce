"""DPCO, the baseline of RCO (arXiv 2506.22157): DPO (arXiv 2305.18290) on pairs of critiques of one response.

    L = - 1/P sum_p log sigmoid( beta ( log p(c+)/p_0(c+) - log p(c-)/p_0(c-) ) )

    cgrpo recipe --recipe=configs/recipes/dpco.py --config=MY_CONFIG.py --workdir=DIR

Collected as in `rco.py`. kept: of each response the critiques of greatest and of least utility, where these differ;
context: the critique's prompt; targets: c+ and c-; weight: 1 a pair. Departure: the paper's pairs are ranked by a judge
as critiques, ours by what they achieve, so that both recipes learn the same samples.
"""

import pathlib
import runpy

RCO = runpy.run_path(str(pathlib.Path(__file__).with_name("rco.py")))


def get_steps(num_responses: int = 4, num_critiques: int = 4, num_refinements: int = 5, which: str = "all",
              critic: str = ""):  # fmt: skip
    """Returns the steps; arguments as of `rco.py`."""
    return RCO["get_steps"](num_responses, num_critiques, num_refinements, which, critic, "dpo")
