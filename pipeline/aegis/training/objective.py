"""What is minimised: the sum of the cross-entropies of a batch's trained tokens, through adapter and soul."""

from __future__ import annotations

from torch import Tensor

from aegis.model.attach import decoder_of
from aegis.training.batch import MicroBatch
from aegis.training.checkpoint import Trainee
from aegis.training.loss import head_loss


def summed_loss(trainee: Trainee, batch: MicroBatch) -> Tensor:
    """Sum of the cross-entropies of a batch's targets in nats, scalar float32, in the graph if there is one."""
    head = trainee.model.get_output_embeddings()
    # no attention mask: documents are kept apart by their edges, or by transformers from their positions
    edges = {} if batch.edges is None else {"cu_seq_lens_q": batch.edges, "max_length_q": batch.longest}
    hidden = decoder_of(trainee.model)(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **edges
    ).last_hidden_state
    return head_loss(
        hidden.flatten(0, 1)[batch.rows],
        head.weight,
        getattr(head, "bias", None),
        batch.targets,
        compiled=trainee.acceleration.compiled,
    )
