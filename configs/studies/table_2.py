"""Table 2: every baseline and every critique. Does a critique teach what rewards and rows alone do not?

python launch/study.py --all --workdir=runs/studies --only=table_2/
"""

from configs.studies import arms

CRITIQUES = {"r1_grpo": arms.ABOVE, "dr_grpo": arms.ABOVE}


def get_study():
    """Returns the study: five seeds on chains, three on programs, where the arms with a rule as the critic run."""
    of_chains = {"headline": False}
    return arms.study(
        "Does Critique-GRPO beat rewards alone and rows alone, with every critique?",
        paper="Table 2 (Qwen2.5-7B, mean of eight benchmarks): SFT 33.04, RAFT 34.27, Refinement FT 35.21, Critique FT "
        "34.76, CITL-FT 35.66, R1-GRPO 41.18, Dr.GRPO 42.66, Critique-GRPO 44.62 (indicative), 45.30 (with the "
        "answer), 47.08 (CoT of GPT-4o); self-critique beats GRPO too (Table 4). Execution critiques stand for a "
        "strong critic's here; no critique and the inserted solution are not in the paper.",
        settings=[arms.CHAINS, arms.CODE | {"seeds": 3}],
        seeds=5,
        arms=[
            arms.R1_GRPO,
            arms.DR_GRPO | {"against": {"r1_grpo": arms.ABOVE}},
            arms.SFT | of_chains | {"against": {"r1_grpo": arms.BELOW}},
            arms.RAFT | {"against": {"r1_grpo": arms.BELOW}},
            arms.REFINEMENT_FT | {"against": {"r1_grpo": arms.BELOW}},
            arms.CRITIQUE_FT | of_chains | {"against": {"r1_grpo": arms.BELOW}},
            arms.CITL_FT | of_chains | {"against": {"r1_grpo": arms.BELOW}},
            arms.NO_CRITIQUE | {"against": {"dr_grpo": arms.NOTHING}},
            arms.SOLUTION | of_chains | {"against": {"dr_grpo": arms.NOTHING, "execution": arms.NOTHING}},
            arms.INDICATIVE | {"against": CRITIQUES},
            arms.INDICATIVE_GT | of_chains | {"against": CRITIQUES | {"indicative": arms.ABOVE}},
            arms.COT | of_chains | {"against": CRITIQUES},
            arms.COT_ANSWER | of_chains | {"against": CRITIQUES},
            arms.EXECUTION | {"against": CRITIQUES | {"indicative": arms.ABOVE}},
        ],
        entropy=["r1_grpo", "dr_grpo", "indicative", "execution"],
    )
