"""Questions that passages of one's own documents answer, with their answers.

nomoat synth document-questions teacher=smollm2-135m-instruct seeds=notes
"""

from nomoat.data.synth import Synth

synth = Synth(about="Questions on one's own documents.", method="questions", count=10_000, temperature=0.5)
