"""Worked answers to questions whose final number is known: several each, the wrong ones left out (Yuan et al. 2023).

nomoat synth sums-by-rejection teacher=smollm2-135m-instruct seeds=gsm8k/train.jsonl.gz
"""

from nomoat.data.synth import Synth

synth = Synth(
    about="Worked sums, only the right ones.",
    method="rejection",
    count=10_000,
    samples=4,
    verifier="equations",
)
