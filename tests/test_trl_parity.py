"""The losses of preference tuning against TRL's own, on the same log-probabilities; skipped where TRL is not installed.

TRL's trainers are asked for their loss alone, with stand-ins for the model and the processes around them.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from nomoat.families.dpo import pair_losses
from nomoat.families.kto import KTO, answer_losses
from nomoat.families.orpo import odds_losses

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs trl and accelerate"),
]
PAIRS, LENGTH = 16, 6


def trainer(**fields):
    """What a loss of TRL's reads of its trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda one: one, gather_for_metrics=lambda one: one
    )
    defaults = {
        "accelerator": accelerator, "model": SimpleNamespace(training=False), "aux_loss_enabled": False,
        "precompute_ref_logps": True, "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0,
        "ld_alpha": None, "use_weighting": False, "beta": 0.1,
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **fields})


def told(logp_B):
    """A model whose rows have these log-probabilities: all of it on their first token."""

    def answer(**given):
        rows = len(logp_B)
        log_probs = torch.zeros(rows, LENGTH)
        log_probs[:, 0] = logp_B
        return SimpleNamespace(
            log_probs=log_probs, entropy=log_probs, mean_logits=log_probs, is_top1=log_probs > 0, aux_loss=None
        )

    return answer


def inputs(rows, **more):
    ones = torch.ones(rows, LENGTH + 1, dtype=torch.long)
    return {"input_ids": ones, "attention_mask": ones, "completion_mask": ones, **more}


def drawn(seed, *shape):
    return -30 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_dpo():
    from trl.trainer.dpo_trainer import DPOTrainer

    logp_B2, reference_B2 = drawn(0, PAIRS, 2), drawn(1, PAIRS, 2)
    batch = inputs(2 * PAIRS, ref_chosen_logps=reference_B2[:, 0], ref_rejected_logps=reference_B2[:, 1])
    asked = trainer(f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0])
    theirs = DPOTrainer._compute_loss(asked, told(logp_B2.T.flatten()), batch, False)
    assert float(pair_losses(logp_B2, reference_B2, 0.1)[0].mean()) == pytest.approx(float(theirs), rel=1e-5)


def test_orpo():
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    mean_B2 = drawn(2, PAIRS, 2) / 8 - 0.01
    losses_B, *_ = ORPOTrainer.odds_ratio_loss(trainer(), mean_B2[:, 0], mean_B2[:, 1])
    torch.testing.assert_close(0.1 * odds_losses(mean_B2)[0], -losses_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("moved", [-3.0, 3.0])
def test_kto(moved):
    from trl.trainer.kto_trainer import KTOTrainer

    logp_B2, reference_B2 = drawn(3, PAIRS, 2), drawn(4, PAIRS, 2)
    logp_B2[:, 1] = reference_B2[:, 1] + moved
    good_B = torch.arange(PAIRS) % 3 > 0
    batch = inputs(PAIRS, label=good_B, ref_logps=reference_B2[:, 0], ref_KL_logps=reference_B2[:, 1])
    asked = trainer(loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.5)
    asked._compute_kl_logps = lambda model, batch: logp_B2[:, 1]
    theirs = KTOTrainer._compute_loss(asked, told(logp_B2[:, 0]), batch, False)
    divergence_B = (logp_B2 - reference_B2)[:, 1].mean().clamp(min=0).expand(PAIRS)
    ours_B = answer_losses((logp_B2 - reference_B2)[:, 0], divergence_B, good_B, KTO(bad=1.5))
    assert float(ours_B.mean()) == pytest.approx(float(theirs), rel=1e-5)
