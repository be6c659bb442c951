"""New tasks with answers, after the manner of some seeds (Wang et al. 2022, arXiv:2212.10560).

nomoat synth self-instruct teacher=smollm2-135m-instruct seeds=seed_tasks.jsonl.gz count=500
"""

from nomoat.data.synth import Synth

synth = Synth(about="New tasks with answers, after some seeds.", method="self-instruct")
